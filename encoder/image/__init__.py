"""Images of every kind -> 8-bit RGB images.

- `inputs.py`: one image or several? What each kind of value is.
- `read.py`: `load_image`, which decodes a file, a PIL image or an array.
- `levels.py`: values of any width -> 8-bit levels.
- `png.py`, `jpeg.py`: files without their metadata; `wide.py`: 16 bits a channel from PNG and TIFF files.
- `find.py`: searches folders for images; `samples.py`: the photographs of scikit-image.
"""

from .find import Found, find_images, image_suffixes, images_in, search_images
from .inputs import ImageLike, as_images
from .read import load_image
from .samples import HELD_OUT, PHOTOGRAPHS, sample_images

__all__ = [
    "HELD_OUT",
    "PHOTOGRAPHS",
    "Found",
    "ImageLike",
    "as_images",
    "find_images",
    "image_suffixes",
    "images_in",
    "load_image",
    "sample_images",
    "search_images",
]
