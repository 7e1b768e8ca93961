"""The connector of FastVLM: visual tokens to the width of the language model's embeddings.

Source: LLaVA's `mm_projector` (build_vision_projector), as apple/ml-fastvlm uses it.
"""

from __future__ import annotations

from torch import Tensor, nn

from .config import ConnectorConfig


class Connector(nn.Sequential):
    """`image_features` (B, N, in_channels) -> `projected` (B, N, out_channels).

    Linear layers stand at even indices with GELU between them, which are LLaVA's own key names
    (`mm_projector.0`, `.2`, …); a `linear` connector is the single layer `0`.
    """

    def __init__(self, config: ConnectorConfig) -> None:
        layers: list[nn.Module] = []
        width = config.in_channels
        for index in range(config.num_layers):
            if index:
                layers.append(nn.GELU())
            layers.append(nn.Linear(width, config.out_channels))
            width = config.out_channels
        super().__init__(*layers)
        self.config = config
        self.eval()

    def forward(self, image_features: Tensor) -> Tensor:
        """(B, N, in_channels) -> (B, N, out_channels)."""
        for layer in self:
            image_features = layer(image_features)
        return image_features
