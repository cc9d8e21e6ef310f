"""The method once more: plainly, slowly, in float64, written from the papers and sharing no code with the package.

Works on the tensors of a CLIP's state dict. Nothing here calls a layer of torch.nn, of open_clip or of kdpl.
"""

import math
from functools import cache, partial

import open_clip
import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIPs
STD = (0.26862954, 0.26130258, 0.27577711)

START, END = 49406, 49407

_tokenizer = cache(open_clip.SimpleTokenizer)


def token_ids(text, context_length=77):
    """One text as [start] bytes-pair tokens [end] and zeros."""
    ids = [START, *_tokenizer().encode(text), END]
    return torch.tensor(ids + [0] * (context_length - len(ids)))


def normalized(rows):
    return rows / (rows * rows).sum(dim=-1, keepdim=True).sqrt()


def softmax(scores):
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def layer_norm(x, weight, bias):
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * weight + bias


def quick_gelu(x):
    return x / (1 + (-1.702 * x).exp())


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def standardized(images, preprocessing):
    """Images [B, 3, S, S] of values from 0 to 255 with the mean and deviation that a tower expects."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (images / 255 - mean) / std


class PlainClip:
    """A CLIP's two towers over its state dict, in float64.

    Args:
        state: State dict of an ``open_clip.CLIP``.
        config: Its config in open_clip's form.
    """

    def __init__(self, state, config):
        self.state = {name: tensor.double() for name, tensor in state.items()}
        vision, text = config["vision_cfg"], config["text_cfg"]
        self.patch = vision["patch_size"]
        self.vision_layers, self.vision_heads = (
            vision["layers"],
            vision["width"] // vision["head_width"],
        )
        self.text_layers, self.text_heads = text["layers"], text["heads"]
        self.context_length = text["context_length"]
        self.activation = quick_gelu if config.get("quick_gelu") else gelu
        self.scale = math.exp(self.state["logit_scale"].item())
        # several tests encode the same texts in 60 templates
        self._unprompted = cache(self._text)

    def _attention(self, x, prefix, heads, causal):
        """Self-attention of one sequence [L, W], head by head."""
        s, (length, width) = self.state, x.shape
        q, k, v = (x @ s[f"{prefix}.in_proj_weight"].T + s[f"{prefix}.in_proj_bias"]).split(
            width, dim=-1
        )
        size = width // heads
        outputs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            if causal:
                later = torch.arange(length)[None, :] > torch.arange(length)[:, None]
                scores = scores.masked_fill(later, -math.inf)
            outputs.append(softmax(scores) @ v[:, part])
        return (
            torch.cat(outputs, dim=-1) @ s[f"{prefix}.out_proj.weight"].T
            + s[f"{prefix}.out_proj.bias"]
        )

    def _block(self, x, prefix, heads, causal):
        s = self.state
        normed = layer_norm(x, s[f"{prefix}.ln_1.weight"], s[f"{prefix}.ln_1.bias"])
        x = x + self._attention(normed, f"{prefix}.attn", heads, causal)
        hidden = layer_norm(x, s[f"{prefix}.ln_2.weight"], s[f"{prefix}.ln_2.bias"])
        hidden = self.activation(
            hidden @ s[f"{prefix}.mlp.c_fc.weight"].T + s[f"{prefix}.mlp.c_fc.bias"]
        )
        return x + hidden @ s[f"{prefix}.mlp.c_proj.weight"].T + s[f"{prefix}.mlp.c_proj.bias"]

    def image_tokens(self, image, mean=MEAN, std=STD):
        """Class token and patches of one image, uint8 [3, S, S], with positions: [1 + patches, W]."""
        s, p = self.state, self.patch
        pixels = image.double() / 255
        pixels = torch.stack([(pixels[c] - mean[c]) / std[c] for c in range(3)])
        kernel = s["visual.conv1.weight"].flatten(1)
        tokens = [s["visual.class_embedding"]]
        for top in range(0, pixels.shape[1], p):
            row = pixels[:, top : top + p]
            tokens += [
                kernel @ row[:, :, left : left + p].flatten()
                for left in range(0, pixels.shape[2], p)
            ]
        return torch.stack(tokens) + s["visual.positional_embedding"]

    def image_norm(self, tokens):
        return layer_norm(
            tokens, self.state["visual.ln_pre.weight"], self.state["visual.ln_pre.bias"]
        )

    def image_block(self, tokens, layer):
        return self._block(
            tokens, f"visual.transformer.resblocks.{layer}", self.vision_heads, causal=False
        )

    def image_features(self, images, prompts=None):
        """Features [B, D], not normalised, of images uint8 [B, 3, S, S], with prompts [J, n, W] or without."""
        s, rows = self.state, []
        for image in images:
            x = self.image_tokens(image)
            plain_tokens = len(x)
            if prompts is not None:
                x = torch.cat([x, prompts[0]])
            x = self.image_norm(x)
            for layer in range(self.vision_layers):
                if prompts is not None and 1 <= layer < len(prompts):
                    x = torch.cat([x[:plain_tokens], prompts[layer]])
                x = self.image_block(x, layer)
            pooled = layer_norm(x[0], s["visual.ln_post.weight"], s["visual.ln_post.bias"])
            rows.append(pooled @ s["visual.proj"])
        return torch.stack(rows)

    def text_features(self, texts, prompts=None):
        """Features [N, D], not normalised, of texts; prompts [J, n, W] take the place of the words after the start."""
        encode = self._unprompted if prompts is None else partial(self._text, prompts=prompts)
        return torch.stack([encode(text) for text in texts])

    def _text(self, text, prompts=None):
        s, ids = self.state, token_ids(text, self.context_length)
        x = torch.stack([s["token_embedding.weight"][i] for i in ids.tolist()])
        if prompts is not None:
            after = 1 + prompts.shape[1]
            x = torch.cat([x[:1], prompts[0], x[after:]])
        x = x + s["positional_embedding"]
        for layer in range(self.text_layers):
            if prompts is not None and 1 <= layer < len(prompts):
                x = torch.cat([x[:1], prompts[layer], x[after:]])
            x = self._block(x, f"transformer.resblocks.{layer}", self.text_heads, causal=True)
        end = ids.tolist().index(END)
        pooled = layer_norm(x[end], s["ln_final.weight"], s["ln_final.bias"])
        return pooled @ s["text_projection"]

    def ensemble(self, names, templates):
        """Normalised mean over templates of the features, which are not normalised one by one, [C, D]."""
        texts = [[template(name.replace("_", " ")) for template in templates] for name in names]
        return normalized(
            torch.stack([self.text_features(of_one_name).mean(dim=0) for of_one_name in texts])
        )

    def logits(self, image_features, text_features):
        return self.scale * normalized(image_features) @ normalized(text_features).T


def prompt_text(words, name):
    return f"{words} {name.replace('_', ' ')}."


def cross_entropy(logits, labels):
    return torch.stack(
        [-softmax(row)[label].log() for row, label in zip(logits, labels, strict=True)]
    ).mean()


def kl(target_logits, logits):
    """Σ p (log p − log q) over all rows and classes, divided by B·C."""
    total = torch.zeros((), dtype=torch.float64)
    for target_row, row in zip(target_logits, logits, strict=True):
        p, q = softmax(target_row), softmax(row)
        for c in range(len(p)):
            total = total + p[c] * (p[c].log() - q[c].log())
    return total / logits.numel()


def distillation(student_logits, teacher_logits, weight, temperature):
    return weight * temperature**2 * kl(teacher_logits / temperature, student_logits / temperature)


def similarity(views, vectors):
    """Largest cosine between class vectors and the mean direction of an image's features of its views [V, D]."""
    direction = normalized(sum(normalized(view) for view in views) / len(views))
    return max((direction * normalized(vector)).sum().item() for vector in vectors)


def promptsrc(
    clip,
    images,
    labels,
    names,
    words,
    vision_prompts,
    text_prompts,
    frozen_text,
    weights=(25.0, 10.0, 1.0),
):
    """The four terms of PromptSRC's loss, by name; ``frozen_text`` is the ensemble of the names, [C, D]."""
    frozen_image = normalized(clip.image_features(images))
    texts = [prompt_text(words, name) for name in names]
    text = normalized(clip.text_features(texts, text_prompts))
    image = normalized(clip.image_features(images, vision_prompts))
    logits = clip.scale * image @ text.T
    zero_shot = clip.scale * frozen_image @ frozen_text.T
    return {
        "ce": cross_entropy(logits, labels),
        "text": weights[0] * (text - frozen_text).abs().sum() / text.numel(),
        "image": weights[1] * (image - frozen_image).abs().sum() / image.numel(),
        "logits": weights[2] * kl(zero_shot, logits),
    }


class PlainProjector:
    """Linear, batch norm, ReLU, linear, with its running statistics, from a state dict with the keys ``layers.i.*``."""

    def __init__(self, state):
        self.parameters = {
            k: v.double().clone() for k, v in state.items() if not k.endswith("num_batches_tracked")
        }

    def __call__(self, x, training):
        p = self.parameters
        x = x @ p["layers.0.weight"].T + p["layers.0.bias"]
        if training:
            mean = x.mean(dim=0)
            variance = ((x - mean) ** 2).mean(dim=0)
            with torch.no_grad():
                unbiased = variance * len(x) / (len(x) - 1)
                p["layers.1.running_mean"] = 0.9 * p["layers.1.running_mean"] + 0.1 * mean
                p["layers.1.running_var"] = 0.9 * p["layers.1.running_var"] + 0.1 * unbiased
        else:
            mean, variance = p["layers.1.running_mean"], p["layers.1.running_var"]
        x = (x - mean) / (variance + 1e-5).sqrt() * p["layers.1.weight"] + p["layers.1.bias"]
        return x.clamp(min=0) @ p["layers.3.weight"].T + p["layers.3.bias"]


class PlainSGD:
    """SGD with momentum and an L2 penalty over tensors that require gradients."""

    def __init__(self, tensors, momentum=0.9, weight_decay=5e-4):
        self.tensors, self.momentum, self.weight_decay = tensors, momentum, weight_decay
        self.velocity = [torch.zeros_like(t) for t in tensors]

    def step(self, loss, lr):
        for i, gradient in enumerate(torch.autograd.grad(loss, self.tensors)):
            tensor = self.tensors[i]
            with torch.no_grad():
                self.velocity[i] = (
                    self.momentum * self.velocity[i] + gradient + self.weight_decay * tensor
                )
                tensor -= lr * self.velocity[i]


def sgd(leaves, rates, batches, loss):
    """Steps of SGD with momentum 0.9 and weight decay 5e-4 in place, with a learning rate for each epoch."""
    batches, velocities = list(batches), [torch.zeros_like(leaf) for leaf in leaves]
    for rate in rates:
        for batch in batches:
            gradients = torch.autograd.grad(loss(*batch), leaves)
            with torch.no_grad():
                for leaf, velocity, gradient in zip(leaves, velocities, gradients, strict=True):
                    velocity.mul_(0.9).add_(gradient + 5e-4 * leaf)
                    leaf.sub_(rate * velocity)


def accuracies(logits, labels, num_base):
    """Accuracy over all classes, of base images among base classes, of novel ones among novel ones, and their mean."""
    base = labels < num_base
    of_base = (logits[base][:, :num_base].argmax(dim=1) == labels[base]).double().mean().item()
    of_novel = (
        (logits[~base][:, num_base:].argmax(dim=1) + num_base == labels[~base])
        .double()
        .mean()
        .item()
    )
    of_all = (logits.argmax(dim=1) == labels).double().mean().item()
    mean = 2 * of_base * of_novel / (of_base + of_novel)
    return {"acc": of_all, "base_acc": of_base, "novel_acc": of_novel, "hm": mean}


def learning_rate(epoch, epochs, lr):
    return 1e-5 if epoch == 0 else lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def relative_error(actual, expected):
    """Largest deviation in units of the largest expected value."""
    actual, expected = (
        torch.as_tensor(actual).detach().double(),
        torch.as_tensor(expected).detach().double(),
    )
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = expected.abs().max()
    assert scale > 0, "nothing to compare: all expected values are zero"
    return ((actual - expected).abs().max() / scale).item()


def backward(*outputs):
    """Backpropagate one random direction from each of several outputs that are to have the same gradients."""
    direction = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0))
    for output in outputs:
        (output * direction).sum().backward()
