from .accelerate import accelerate as accelerate
from .cuda_graph import cuda_graph as cuda_graph
