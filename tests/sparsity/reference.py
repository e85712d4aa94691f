"""What a pruned model should be, worked out on a whole model in memory with hooks and loops."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def linears(model, prefix):
    """name -> module of the matrices of one block, told by their type."""
    found = {}
    for name, module in model.named_modules():
        if name.startswith(prefix + ".") and isinstance(module, (nn.Linear, Conv1D)):
            found[name] = module
    return found


def weight_of(module):
    """[out, in], a view."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def drop_lowest(score, count):
    """Keep-mask: `count` lowest scores go, equal ones in order of index. By sorting pairs."""
    flat = [(float(s), i) for i, s in enumerate(score.flatten())]
    keep = torch.ones(len(flat), dtype=torch.bool)
    for _, index in sorted(flat)[:count]:
        keep[index] = False
    return keep.view(score.shape)


def wanda(weight, norm, count):
    """Row by row: the first rows lose one more where the count doesn't divide."""
    rows = len(weight)
    each, more = divmod(count, rows)
    score = weight.float().abs() * norm
    return torch.stack([drop_lowest(row, each + (i < more)) for i, row in enumerate(score)])


def prune_whole_model(model, batches, blocks, zeros, method):
    """Prune `model` in place, block after block, each seeing what the pruned ones before it give.

    Args:
        model: the dense model, whole in memory.
        batches: keyword arguments of its forward.
        blocks: names of the blocks, in order.
        zeros: module name -> number of weights to remove.
        method: "magnitude" or "wanda".
    """
    for block in blocks:
        modules = {n: m for n, m in linears(model, block).items() if n in zeros}
        squares = dict.fromkeys(modules, 0.0)

        def record(name, squares=squares):
            def hook(module, args):
                rows = args[0].detach().reshape(-1, args[0].shape[-1]).float()
                squares[name] = squares[name] + rows.double().square().sum(0)

            return hook

        handles = [m.register_forward_pre_hook(record(n)) for n, m in modules.items()]
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        for handle in handles:
            handle.remove()
        for name, module in modules.items():
            weight = weight_of(module)
            if method == "magnitude":
                keep = drop_lowest(weight.float().abs(), zeros[name])
            else:
                keep = wanda(weight, squares[name].sqrt().float(), zeros[name])
            weight[~keep] = 0
    return model
