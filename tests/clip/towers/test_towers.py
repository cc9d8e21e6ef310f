"""A small member of each family of towers: open_clip's own features, and prompts against a loop written by hand."""

from copy import deepcopy
from functools import cache

import open_clip
import pytest
import timm
import torch
import world
from open_clip.transformer import text_global_pool
from plain import backward, relative_error, standardized
from timm.models import register_model
from timm.models.vitamin import VitCfg, VitConvCfg

import kdpl.clip.loading
from kdpl.clip import ClipConfig, Frozen, PromptableImageTower, load_clip
from kdpl.clip.loading import build_image_tower
from kdpl.clip.towers.text import PromptableTextTower
from kdpl.errors import ConfigError, WeightsError
from kdpl.prompts import TextPrompts, VisionPrompts

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 3}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}


def timm_vision(name, size, pool="", proj="linear"):
    return {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


def config(vision, text=TEXT, embed_dim=16, **more):
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, **more}


WHOLE_TEXT = {**TEXT, "no_causal_mask": True}
SIGLIP_TEXT = {**WHOLE_TEXT, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
COCA = {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
COCA_TEXT = {**TEXT, "context_length": 19, "embed_cls": True, "output_tokens": True}
CLIPA = {
    **VIT,
    "pool_type": "avg",
    "final_ln_after_pool": True,
    "no_ln_pre": True,
    "pos_embed_type": "sin_cos_2d",
}


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
PE_SIZE = {"img_size": 48, "embed_dim": 32, "depth": 2, "num_heads": 4}
PE = small("small_pe", "vit_pe_core_tiny_patch16_384", **PE_SIZE)
HYBRID_SIZE = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
HYBRID = small("small_vitamin", "vitamin_small_224", embed_cfg=CONVOLUTIONS, **HYBRID_SIZE)
STEM = small("small_mci", "vit_base_mci_224", img_size=32, depth=2)
FAST = small("small_fastvit", "fastvit_mci0", layers=(1,) * 4, embed_dims=(16, 32, 64, 128))
SIGLIP = timm_vision("test_vit", 160, "map", "none")

FAMILIES = {
    "CLIP, text apart": config(VIT, custom_text=True),
    "EVA-02": config(timm_vision(EVA, 28, "token"), custom_text=True),
    "SigLIP": config(SIGLIP, SIGLIP_TEXT, custom_text=True, embed_dim=64),
    "PE-Core": config(timm_vision(PE, 48, "map"), {**TEXT, "context_length": 18}, custom_text=True),
    "MobileCLIP": config(timm_vision(FAST, 64, "avg"), WHOLE_TEXT, custom_text=True),
    "MobileCLIP-B": config(timm_vision(STEM, 32, "token"), custom_text=True),
    "ViTamin": config(timm_vision(HYBRID, 32), custom_text=True),
    "CLIPA": config(CLIPA, {**WHOLE_TEXT, "pool_type": "last"}),
    "MetaCLIP 2": config(VIT, {**TEXT, "pool_type": "eos", "eos_id": 49407}),
    "ResNet": config({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}),
    "CoCa": config(COCA, COCA_TEXT, multimodal_cfg={"width": 24, "heads": 3, "layers": 1}),
}
"""Model configs as open_clip's, with few layers."""


TOKENS = [name for name in FAMILIES if name not in ("MobileCLIP", "ResNet")]
"""Those whose image tower has tokens that prompts can stand beside."""

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
                is_scale = "running_var" in name or name.endswith("weight")
                tensor.copy_(is_scale + 0.1 * noise)
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


def arranged(clip):
    """The names of three classes in a prompt, as its text tower takes them."""
    return clip.text_tower.arrange(clip.tokenize([f"a photo of {name}" for name in NAMES]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_are_those_of_open_clip(family):
    clip, model = clip_of_family(family), plain_model(family)
    images, ids = some_images(clip), clip.tokenize(NAMES)
    expected = model.encode_image(standardized(images, clip.preprocessing), normalize=False)
    assert relative_error(clip.image_tower(images), expected) < 1e-5
    features = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(features, model.encode_text(ids, normalize=False)) < 1e-5
    assert features.shape[1] == clip.image_tower.embed_dim


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_its_projection_a_tower_gives_what_enters_it_and_is_built_again(family):
    tower, visual = deepcopy(clip_of_family(family).image_tower), plain_model(family).visual
    images, width = some_images(clip_of_family(family)), tower.embed_dim
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
    # these have no projection apart, or one that keeps the width
    assert (tower.embed_dim == width) == (family in ("SigLIP", "ResNet", "CoCa"))
    again = build_image_tower(tower.config, tower.preprocessing)
    again.load_state_dict(tower.state_dict())
    assert again(images).equal(after)


def half_precision(clip):
    """Features and gradients under autocast, without prompts and with them."""
    images, texts = some_images(clip), arranged(clip)
    learned, prompted = [], []
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        with torch.no_grad():
            results = [clip.image_tower(images), clip.text_tower(texts)]
        if isinstance(clip.image_tower, PromptableImageTower):
            learned.append(VisionPrompts(3, 2, clip.image_tower))
            prompted.append(learned[-1](clip.image_tower, images))
        if isinstance(clip.text_tower, PromptableTextTower):
            learned.append(TextPrompts(3, 2, "a photo of", clip.text_tower, clip.tokenize))
            prompted.append(learned[-1](clip.text_tower, texts))
    for features in prompted:
        features.float().square().sum().backward()
    return [*results, *prompted, *(p.grad for prompts in learned for p in prompts.parameters())]


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_stored_in_autocasts_type_change_no_bit(family):
    clip = load_clip(ClipConfig(family, world.TAG))
    expected = half_precision(clip)
    for tower in (clip.image_tower, clip.text_tower):
        cast = list(tower.cast_weights())
        parameters = tower.named_parameters()
        rest = sum(p.numel() for name, p in parameters if "token_embedding" not in name)
        # no prompts reach the text tower of a CoCa
        assert sum(p.numel() for p in cast) > 0.9 * rest or family == "CoCa"
        Frozen(tower).store_in(torch.bfloat16)
        assert {p.dtype for p in cast} <= {torch.bfloat16}
    assert all(map(torch.equal, half_precision(clip), expected))


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
            after = first if layer == 0 else first + length
            prompt = x[:, first:after] if layer >= depth else prompts[layer].expand(len(x), -1, -1)
            x = block(torch.cat([x[:, :first], prompt, x[:, after:]], dim=1), **options)
            if layer < len(blocks) - 1:
                return x
            return torch.cat([x[:, :first], x[:, first + length :]], dim=1)

        block.step = run
    swapped = deepcopy(visual)
    stepped = swapped.transformer.resblocks if trunk is None else swapped.trunk.blocks
    for layer, block in enumerate(sees):
        stepped[layer].forward = block.step
    features = swapped(images)
    return features[0] if isinstance(features, tuple) else features


# the image towers of the other two are those of CLIP
@pytest.mark.parametrize(
    ("family", "depth"),
    [("EVA-02", 1), ("CoCa", 1)]
    + [(name, 2) for name in TOKENS if name not in ("CLIP, text apart", "MetaCLIP 2")],
)
def test_visual_prompts_and_their_gradients_are_the_plain_ones(family, depth):
    clip, visual = clip_of_family(family), deepcopy(plain_model(family).visual).double()
    images = some_images(clip)
    pixels = standardized(images.double(), clip.preprocessing)
    prompts = world.disturbed(VisionPrompts(3, depth, clip.image_tower), 0.5)
    tokens = prompts.tokens.detach().double().requires_grad_()

    features = prompts(clip.image_tower, images)
    expected = plain_image_features(visual, pixels, tokens)
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
        prompt = prompts[layer].expand(len(x), -1, -1)
        return torch.cat([x[:, :start], prompt, x[:, start + prompts.shape[1] :]], dim=1)

    x = insert(text.token_embedding(ids), 0) + text.positional_embedding
    for layer, block in enumerate(text.transformer.resblocks):
        x = block(insert(x, layer) if 0 < layer < len(prompts) else x, attn_mask=text.attn_mask)
    pooled = text_global_pool(text.ln_final(x), ids, pool_type, end)
    projection = text.text_projection
    return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection


@pytest.mark.parametrize(
    ("family", "depth", "at_once"),
    [
        ("CLIP, text apart", 3, 2),
        ("SigLIP", 3, 2),
        ("PE-Core", 3, 128),
        ("MobileCLIP", 3, 128),
        ("CLIPA", 3, 2),
        ("MetaCLIP 2", 1, 2),
    ],
)
def test_text_prompts_and_their_gradients_are_the_plain_ones(family, depth, at_once):
    clip, model = clip_of_family(family), plain_model(family)
    prompts = TextPrompts(3, depth, "a photo of", clip.text_tower, clip.tokenize)
    world.disturbed(prompts, 0.5)
    layers = torch.cat([prompts.context[None], prompts.deep]).detach().double().requires_grad_()
    ids = clip.tokenize([f"a photo of {name}" for name in NAMES])

    features = prompts(clip.text_tower, arranged(clip), at_once)
    expected = plain_text_features(model, ids, layers)
    assert relative_error(features, expected) < 1e-5
    unprompted = clip.text_tower(arranged(clip))
    assert relative_error(features, unprompted) > 1e-3, "the prompts must matter"
    backward(features, expected)
    learned = torch.cat([prompts.context.grad[None], *([prompts.deep.grad] if depth > 1 else [])])
    assert relative_error(learned, layers.grad) < 1e-5


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_a_causal_tower_with_another_pooling_is_read_and_an_unknown_one_refused(monkeypatch):
    text = {**TEXT, "pool_type": "last"}
    for name, apart in {"apart": True, "within": False}.items():
        settings = config(VIT, text, custom_text=apart), {}
        monkeypatch.setitem(kdpl.clip.loading._REGISTRY, name, settings)
    clip = load_clip(ClipConfig("apart", "random"))
    ids = clip.tokenize(NAMES)
    features = clip.text_tower(clip.text_tower.arrange(ids))
    assert relative_error(features, clip.text_tower.text(ids)) < 1e-6
    with world.refused(WeightsError, "within cannot be a teacher"):
        load_clip(ClipConfig("within", "random"))


def test_a_text_tower_of_another_kind_takes_no_prompts():
    clip = clip_of_family("CoCa")
    with world.refused(ConfigError, r"set text_prompts\.depth to 0"):
        TextPrompts(2, 1, "a photo of", clip.text_tower, clip.tokenize)
