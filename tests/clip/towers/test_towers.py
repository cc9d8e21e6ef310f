"""A small member of each family of towers: open_clip's own features, and prompts against a loop written by hand."""

from copy import deepcopy
from functools import cache

import open_clip
import pytest
import timm
import torch
import world
from open_clip.transformer import text_global_pool
from plain import backward, normalized, relative_error
from timm.models import register_model
from timm.models.vitamin import VitCfg, VitConvCfg

import kdpl.clip.loading
from kdpl.clip import ClipConfig, Frozen, PromptableImageTower, load_clip
from kdpl.clip.loading import build_image_tower
from kdpl.clip.towers.text import PromptableTextTower
from kdpl.errors import ConfigError, WeightsError
from kdpl.prompts import PromptConfig, PromptMethod, TextPrompts, VisionPrompts

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 3}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}


def timm_vision(name, size, pool="", proj="linear"):
    return {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


def config(vision, text=TEXT, embed_dim=16, **more):
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, **more}


SIGLIP_TEXT = {
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6},
}
COCA = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
COCA_TEXT = {**TEXT, "context_length": 19, "embed_cls": True, "output_tokens": True}


def small(name, base, **settings):
    """Register a timm model that is another one with smaller settings."""

    def build(pretrained=False, **more):
        return timm.create_model(base, pretrained=pretrained, **settings, **more)

    build.__name__ = build.__qualname__ = name
    register_model(build)
    return name


CONVOLUTIONS = VitCfg(embed_dim=(8, 16, 24), depths=(1, 1, 1), stem_width=8, head_type="1d")
CONVOLUTIONS.conv_cfg = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
EVA = small("small_eva", "eva02_tiny_patch14_224", img_size=28, embed_dim=36, depth=3, num_heads=3)
PE = small(
    "small_pe", "vit_pe_core_tiny_patch16_384", img_size=48, embed_dim=32, depth=2, num_heads=4
)
HYBRID = small(
    "small_vitamin",
    "vitamin_small_224",
    img_size=32,
    embed_dim=24,
    depth=2,
    num_heads=2,
    embed_cfg=CONVOLUTIONS,
)
STEM = small("small_mci", "vit_base_mci_224", img_size=32, depth=2)

FAMILIES = {
    "CLIP, text apart": config(VIT, custom_text=True),
    "EVA-02": config(timm_vision(EVA, 28, "token"), custom_text=True),
    "SigLIP": config(
        timm_vision("test_vit", 160, "map", "none"),
        {**TEXT, **SIGLIP_TEXT},
        custom_text=True,
        embed_dim=64,
    ),
    "PE-Core": config(timm_vision(PE, 48, "map"), {**TEXT, "context_length": 18}, custom_text=True),
    "MobileCLIP": config(
        timm_vision("fastvit_mci0", 64, "avg"), {**TEXT, "no_causal_mask": True}, custom_text=True
    ),
    "MobileCLIP-B": config(timm_vision(STEM, 32, "token"), custom_text=True),
    "ViTamin": config(timm_vision(HYBRID, 32), custom_text=True),
    "CLIPA": config(
        {
            **VIT,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "no_ln_pre": True,
            "pos_embed_type": "sin_cos_2d",
        },
        {**TEXT, "no_causal_mask": True, "pool_type": "last"},
    ),
    "MetaCLIP 2": config(VIT, {**TEXT, "pool_type": "eos", "eos_id": 49407}),
    "ConvNeXt": config(timm_vision("test_convnext", 48, "avg"), custom_text=True),
    "ResNet": config({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}),
    "CoCa": config(
        {**VIT, **COCA}, COCA_TEXT, multimodal_cfg={"width": 24, "heads": 3, "layers": 1}
    ),
}
"""Model configs as open_clip's, with few layers."""

ZERO_SHOT = ("CoCa",)
"""Those whose text tower takes no prompts."""

TOKENS = [name for name in FAMILIES if name not in ("MobileCLIP", "ConvNeXt", "ResNet")]
"""Those whose image tower has tokens that prompts can stand beside."""

AS_THEY_ARE = ("SigLIP", "ResNet", "CoCa")
"""Those whose image tower has no projection apart, or one that keeps the width."""

NAMES = ["sea horse", "crab", "blue whale"]


@cache
def plain_model(family):
    """The family's member as open_clip builds it, with random weights that hide no mistake."""
    named = {key: value for key, value in FAMILIES[family].items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if FAMILIES[family].get("custom_text") else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = (open_clip.CoCa if "multimodal_cfg" in named else kind)(**named).eval()
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape)
            if not tensor.is_floating_point() or "logit" in name:
                continue
            if tensor.ndim < 2:
                tensor.copy_(
                    (1 if "running_var" in name or name.endswith("weight") else 0) + 0.1 * noise
                )
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        for family, model_config in FAMILIES.items():
            weights = {world.TAG: lambda family=family: plain_model(family).state_dict()}
            # not for tests of all models that are known
            patch.setitem(kdpl.clip.loading._REGISTRY, family, (model_config, weights))
        yield


@cache
def clip_of_family(family):
    return load_clip(ClipConfig(family, world.TAG))


def some_images(clip):
    return world.images_of(torch.tensor([0, 1, 2]), seed=1, size=clip.preprocessing.image_size)


def normalised(clip, images):
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (clip.preprocessing.mean, clip.preprocessing.std)
    )
    return (images / 255 - mean) / std


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_open_clip(family):
    clip, plain = clip_of_family(family), plain_model(family)
    images, ids = some_images(clip), clip.tokenize(NAMES)
    with torch.no_grad():
        assert (
            relative_error(
                clip.image_tower(images),
                plain.encode_image(normalised(clip, images), normalize=False),
            )
            < 1e-5
        )
        features = clip.text_tower(clip.text_tower.arrange(ids))
        assert relative_error(features, plain.encode_text(ids, normalize=False)) < 1e-5
    assert features.shape[1] == clip.image_tower.embed_dim


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_projection_a_tower_gives_what_enters_it_and_is_built_again(family):
    tower, visual = deepcopy(clip_of_family(family).image_tower), plain_model(family).visual
    images, width = some_images(clip_of_family(family)), tower.embed_dim
    with torch.no_grad():
        before = tower(images)
        tower.drop_projection()
        after = tower(images)
        # the layer that open_clip's module has after its pooling, if there is one apart
        if isinstance(proj := getattr(visual, "proj", None), torch.nn.Parameter):
            projected = after @ proj
        else:
            apart = hasattr(visual, "trunk") and not hasattr(visual.head, "pool")
            projected = visual.head(after) if apart else after
        assert relative_error(projected, before) < 1e-5
        assert after.shape[1] == tower.embed_dim
        assert (tower.embed_dim != width) == (family not in AS_THEY_ARE)
        again = build_image_tower(tower.config, tower.preprocessing)
        again.load_state_dict(tower.state_dict())
        assert again(images).equal(after)


def half_precision(clip):
    """Features and gradients under autocast, without prompts and with them."""
    images, found = some_images(clip), []
    texts = clip.text_tower.arrange(clip.tokenize([f"a photo of {name}" for name in NAMES]))
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        with torch.no_grad():
            found += [clip.image_tower(images), clip.text_tower(texts)]
        learnt = []
        if isinstance(clip.image_tower, PromptableImageTower):
            learnt.append(VisionPrompts(3, 2, clip.image_tower))
            found.append(learnt[-1](clip.image_tower, images))
        if isinstance(clip.text_tower, PromptableTextTower):
            learnt.append(TextPrompts(3, 2, "a photo of", clip.text_tower, clip.tokenize))
            found.append(learnt[-1](clip.text_tower, texts))
    for prompts, features in zip(learnt, found[2:], strict=True):
        features.float().square().sum().backward()
        found += [parameter.grad for parameter in prompts.parameters()]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_stored_in_autocasts_type_change_no_bit(family):
    clip = load_clip(ClipConfig(family, world.TAG))
    expected = half_precision(clip)
    for tower in (clip.image_tower, clip.text_tower):
        cast = list(tower.cast_weights())
        rest = sum(
            p.numel() for name, p in tower.named_parameters() if "token_embedding" not in name
        )
        assert sum(p.numel() for p in cast) > 0.9 * rest or family in ZERO_SHOT
        Frozen(tower).store_in(torch.bfloat16)
        assert {p.dtype for p in cast} <= {torch.bfloat16}
    for one, other in zip(half_precision(clip), expected, strict=True):
        assert torch.equal(one, other)


def plain_image_features(visual, images, prompts):
    """Encode normalised images with prompts [J, n, W], which stand before the patches here."""
    depth, length, _ = prompts.shape
    trunk = getattr(visual, "trunk", None)
    blocks = visual.transformer.resblocks if trunk is None else trunk.blocks
    first = 1 if trunk is None else trunk.num_prefix_tokens
    sees = [deepcopy(block) for block in blocks]
    for layer, block in enumerate(sees):
        # as if they were register tokens: those are not rotated
        if hasattr(block, "attn") and hasattr(block.attn, "num_prefix_tokens"):
            block.attn.num_prefix_tokens += length

        def run(x, block=block, layer=layer, **options):
            own = (
                prompts[layer].expand(len(x), -1, -1)
                if layer < depth
                else x[:, first : first + length]
            )
            rest = x[:, first:] if layer == 0 else x[:, first + length :]
            x = block(torch.cat([x[:, :first], own, rest], dim=1), **options)
            return (
                torch.cat([x[:, :first], x[:, first + length :]], dim=1)
                if layer == len(blocks) - 1
                else x
            )

        block.step = run
    swapped = deepcopy(visual)
    own = swapped.transformer.resblocks if trunk is None else swapped.trunk.blocks
    for layer, block in enumerate(sees):
        own[layer].forward = block.step
    features = swapped(images)
    return features[0] if isinstance(features, tuple) else features


@pytest.mark.parametrize(
    "family", [name for name in TOKENS if name not in ("CLIP, text apart", "MetaCLIP 2")]
)
@pytest.mark.parametrize("depth", [1, 2])
def test_visual_prompts_and_their_gradients_are_the_plain_ones(family, depth):
    clip, visual = clip_of_family(family), deepcopy(plain_model(family).visual).double()
    images = some_images(clip)
    prompts = world.disturbed(VisionPrompts(3, depth, clip.image_tower), 0.5)
    tokens = prompts.tokens.detach().double().requires_grad_()

    features = prompts(clip.image_tower, images)
    expected = plain_image_features(visual, normalised(clip, images.double()), tokens)
    assert relative_error(features, expected) < 1e-5
    assert relative_error(features, clip.image_tower(images)) > 1e-3, "the prompts must matter"
    backward(features, expected)
    assert relative_error(prompts.tokens.grad, tokens.grad) < 1e-5


def plain_text_features(model, ids, prompts, start=1):
    """Encode token ids [N, L] with prompts [J, n, W] at the positions from ``start`` on."""
    text = deepcopy(getattr(model, "text", model)).double()
    pool_type, end = (
        getattr(text, f"text_{name}", getattr(text, name, None)) for name in ("pool_type", "eos_id")
    )

    def insert(x, layer):
        own = prompts[layer].expand(len(x), -1, -1)
        return torch.cat([x[:, :start], own, x[:, start + prompts.shape[1] :]], dim=1)

    x = insert(text.token_embedding(ids), 0) + text.positional_embedding
    for layer, block in enumerate(text.transformer.resblocks):
        x = block(insert(x, layer) if 0 < layer < len(prompts) else x, attn_mask=text.attn_mask)
    pooled = text_global_pool(text.ln_final(x), ids, pool_type, end)
    projection = text.text_projection
    return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection


@pytest.mark.parametrize(
    "family", ["CLIP, text apart", "SigLIP", "PE-Core", "MobileCLIP", "CLIPA", "MetaCLIP 2"]
)
@pytest.mark.parametrize(("depth", "at_once"), [(1, 128), (3, 128), (3, 2)])
def test_text_prompts_and_their_gradients_are_the_plain_ones(family, depth, at_once):
    clip, model = clip_of_family(family), plain_model(family)
    prompts = world.disturbed(
        TextPrompts(3, depth, "a photo of", clip.text_tower, clip.tokenize), 0.5
    )
    layers = torch.cat([prompts.context[None], prompts.deep]).detach().double().requires_grad_()
    ids = clip.tokenize([f"a photo of {name}" for name in NAMES])

    features = prompts(clip.text_tower, clip.text_tower.arrange(ids), at_once)
    expected = plain_text_features(model, ids, layers)
    assert relative_error(features, expected) < 1e-5
    assert relative_error(features, clip.text_tower(clip.text_tower.arrange(ids))) > 1e-3, (
        "the prompts must matter"
    )
    backward(features, expected)
    learnt = torch.cat([prompts.context.grad[None], *([prompts.deep.grad] if depth > 1 else [])])
    assert relative_error(learnt, layers.grad) < 1e-5


@pytest.mark.parametrize("family", ["CLIP, text apart", "SigLIP", ZERO_SHOT[0]])
def test_every_text_tower_averages_the_texts_of_a_class(family):
    tower, tokenize = (clip := clip_of_family(family)).text_tower, clip.tokenize
    method = PromptMethod(PromptConfig(depth=0), PromptConfig(depth=0), "a", clip)
    one, two, other = (
        tower(tower.arrange(tokenize([f"a {name}."]))) for name in ("cat", "large cat", "dog")
    )
    found = method.encode_names([("cat", "large cat"), "dog"], tower, tokenize)
    assert relative_error(found, normalized(torch.cat([(one + two) / 2, other]))) < 1e-5


def test_a_causal_tower_that_pools_elsewhere_is_read_as_it_is_and_an_unknown_one_is_refused(
    monkeypatch,
):
    text = {**TEXT, "pool_type": "last"}
    for name, model_config in {
        "apart": config(VIT, text, custom_text=True),
        "within": config(VIT, text),
    }.items():
        monkeypatch.setitem(kdpl.clip.loading._REGISTRY, name, (model_config, {}))
    clip = load_clip(ClipConfig("apart", "random"))
    ids = clip.tokenize(NAMES)
    assert (
        relative_error(clip.text_tower(clip.text_tower.arrange(ids)), clip.text_tower.text(ids))
        < 1e-6
    )
    with world.refused(
        WeightsError, "within cannot be a teacher, because its text tower is of no known kind: set"
    ):
        load_clip(ClipConfig("within", "random"))


@pytest.mark.parametrize("family", ZERO_SHOT)
def test_a_text_tower_of_another_kind_takes_no_prompts(family):
    clip = clip_of_family(family)
    with world.refused(
        ConfigError,
        r"a text tower of kind TextTransformer takes no prompts: set text_prompts\.depth to 0",
    ):
        TextPrompts(2, 1, "a photo of", clip.text_tower, clip.tokenize)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TOKENS])
def test_an_image_tower_without_tokens_takes_no_prompts(family):
    tower = clip_of_family(family).image_tower
    assert not isinstance(tower, PromptableImageTower)
    with world.refused(
        ConfigError, r"no tokens that prompts could stand beside: set vision_prompts\.depth to 0"
    ):
        VisionPrompts(2, 2, tower)
