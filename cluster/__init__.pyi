from .encode import encode_on_ray as encode_on_ray
from .encode_images import EncodeImages as EncodeImages
from .run import run_on_ray as run_on_ray
from .shipping import ShippedArtifact as ShippedArtifact
from .shipping import ship as ship
from .workers import RayOptions as RayOptions
