import re

from torch import nn


def repeated_blocks(m):
    return {
        n: b for n, bs in m.named_modules() if isinstance(bs, nn.ModuleList) and "." not in n for b in bs for n in [n]
    }


def targets(m):
    t = tuple(
        re.escape(n)
        for n, x in m.named_modules()
        if hasattr(x, "in_features") and any(p.isdigit() for p in n.split("."))
    )
    return {"attention": t, "attention_mlp": t, "all": t}


def conv_targets(m):
    return ()


def describe(m):
    return f"{len(targets(m)['all'])} layers"
