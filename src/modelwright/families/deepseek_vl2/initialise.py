"""How a new vision tower's weights are drawn (``weight_init``); norms keep the ones and zeros they were made with.

Only ``torch.nn.init`` is called, looked up at each call: there transformers guards weights that were loaded against
being drawn again.
"""

import math

from torch import nn

from modelwright.families.deepseek_vl2.siglip import AttentionPool, VisionTower


def initialise_tower(tower: VisionTower) -> None:
    """Draw what is learned from nothing (positions, class token, pooling query), then the layers by ``weight_init``.

    ``skip`` leaves the layers as they are. The other schemes are those of the ViT training codes they are named after:

    - ``""``: weights normal with deviation 0.02, biases zero;
    - ``moco``: weights uniform (Xavier), the merged projection drawn as the three that it is, biases zero;
    - ``jax``: weights uniform (Xavier), patch weights normal by fan-in (LeCun), the classifier zero, feed-forward
      biases normal with deviation 1e-6, other biases zero;
    - ``jax_nlhb``: as ``jax``, but the classifier's bias ``-log(num_classes)``.
    """
    std = tower.config.width**-0.5
    nn.init.normal_(tower.pos_embed, std=std)
    if tower.cls_token is not None:
        nn.init.normal_(tower.cls_token, std=1e-6)
    for name, module in tower.named_modules():
        if isinstance(module, AttentionPool):
            nn.init.normal_(module.latent, std=std)
        elif isinstance(module, nn.Linear):
            _draw_linear(name, module, tower.config.weight_init)
    if tower.config.weight_init.startswith("jax"):
        patches = tower.patch_embed.proj
        nn.init.normal_(patches.weight, std=patches.weight[0].numel() ** -0.5)
        if patches.bias is not None:
            nn.init.zeros_(patches.bias)


def _draw_linear(name: str, layer: nn.Linear, scheme: str) -> None:
    jax, classifier = scheme.startswith("jax"), name == "head"
    if scheme == "skip":
        return
    if scheme == "":
        nn.init.normal_(layer.weight, std=0.02)
    elif jax and classifier:
        nn.init.zeros_(layer.weight)
    elif scheme == "moco" and name.endswith("qkv"):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features // 3))
        nn.init.uniform_(layer.weight, -bound, bound)
    else:
        nn.init.xavier_uniform_(layer.weight)
    std = 1e-6 if jax and "mlp" in name else 0.0
    mean = -math.log(layer.out_features) if scheme == "jax_nlhb" and classifier else 0.0
    if layer.bias is not None:
        nn.init.normal_(layer.bias, mean, std)
