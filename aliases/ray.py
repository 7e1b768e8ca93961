"""`fvexport.ray`: encode images with Ray Data, as a step of any pipeline or as a whole run.

    ds = ray.data.read_images("s3://bucket/photos")
    ds = ds.map_batches(fvexport.ray.EncodeImages, fn_constructor_args=("fastvithd-1024-fp32",), batch_size=32)

Needs Ray (`pip install "fvexport[ray]"`). The code is in `fvexport.cluster`.
"""

from fvexport.cluster import EncodeImages, RayOptions, ShippedArtifact, encode_on_ray, ship

__all__ = ["EncodeImages", "RayOptions", "ShippedArtifact", "encode_on_ray", "ship"]
