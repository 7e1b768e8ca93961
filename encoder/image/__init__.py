"""Images of every kind -> 8-bit RGB images.

- `inputs.py`: one image or several? What each kind of value is.
- `read.py`: `load_image`, which decodes a file, a PIL image or an array.
"""

from .inputs import ImageLike, as_images
from .read import HELD_OUT, PHOTOGRAPHS, find_images, load_image, sample_images

__all__ = ["HELD_OUT", "PHOTOGRAPHS", "ImageLike", "as_images", "find_images", "load_image", "sample_images"]
