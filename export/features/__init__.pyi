from .encode import encode_images as encode_images
from .feature_form import FeatureForm as FeatureForm
from .open_source import SourceOptions as SourceOptions
from .open_source import open_source as open_source
from .request import Request as Request
from .run import EncodeReport as EncodeReport
from .source import Item as Item
from .source import Source as Source
