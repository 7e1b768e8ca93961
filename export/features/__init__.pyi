from .encode import encode_images as encode_images
from .feature_form import FeatureForm as FeatureForm
from .request import Request as Request
from .run import EncodeReport as EncodeReport
from .sources.open_source import SourceOptions as SourceOptions
from .sources.open_source import open_source as open_source
from .sources.source import Item as Item
from .sources.source import Source as Source
