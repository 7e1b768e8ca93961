from .encode import EncodeReport as EncodeReport
from .encode import encode_images as encode_images
from .feature_form import FeatureForm as FeatureForm
from .request import Request as Request
from .source import Item as Item
from .source import Source as Source
