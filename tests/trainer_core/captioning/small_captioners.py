"""Captioning models of real classes with random weights, saved as transformers saves them: some 100 kB each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "<image>",
    "USER",
    ":",
    "ASSISTANT",
    "a",
    "red",
    "circle",
    "blue",
    "Describe",
    "this",
    "image",
]
BEGIN, PAD, END, IMAGE = 0, 1, 2, 4
_SIZE = {"height": 16, "width": 16}
_SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def _seeded(make: Any, config: Any) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(config)


def llava(folder: Path) -> None:
    """What JoyCaption is, in small."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    vision = CLIPVisionConfig(**{**_SMALL, "num_hidden_layers": 2}, image_size=16, patch_size=8, projection_dim=16)
    text = LlamaConfig(**_SMALL, vocab_size=len(WORDS), num_key_value_heads=2, max_position_embeddings=512)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    _seeded(LlavaForConditionalGeneration, config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_SIZE),
        _tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def blip(folder: Path, says: str | None = None) -> None:
    """`says` is a word that it always says, and that ends what it says."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    text = {**_SMALL, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 512}
    tokens = {
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "sep_token_id": WORDS.index(says or "</s>"),
    }
    vision = {**_SMALL, "image_size": 16, "patch_size": 8}
    config = BlipConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=16)
    model = _seeded(BlipForConditionalGeneration, config)
    if says is not None:
        model.text_decoder.cls.predictions.decoder.bias.data[WORDS.index(says)] = 1e4
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size=_SIZE), _tokenizer()).save_pretrained(folder)


def florence(folder: Path) -> None:
    """Florence-2: an encoder of pictures and tasks, and a decoder."""
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    stages = {"embed_dim": [8, 16], "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2]}
    stages |= {"patch_padding": [3, 1], "patch_prenorm": [False, True], "num_heads": [1, 1], "num_groups": [1, 1]}
    text: dict[str, Any] = {"model_type": "bart", "vocab_size": len(WORDS), "d_model": 16}
    for side in ("encoder", "decoder"):
        text |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 16}
    text |= {"max_position_embeddings": 512, "bos_token_id": BEGIN, "pad_token_id": PAD, "eos_token_id": END}
    text |= {"decoder_start_token_id": END, "forced_eos_token_id": END}
    vision = {**stages, "projection_dim": 16, "window_size": 4}
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=IMAGE)
    _seeded(Florence2ForConditionalGeneration, config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=size, crop_size=size, image_seq_length=17)
    Florence2Processor(images, _tokenizer()).save_pretrained(folder)


def qwen_vl(folder: Path) -> None:
    """Qwen2.5-VL: a decoder that is asked in a chat, with as many tokens of a picture as it has patches."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.image_token, tokenizer.video_token = marks[2:]
    tokenizer.image_token_id, tokenizer.video_token_id = tokenizer.convert_tokens_to_ids(marks[2:])
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    text = {**_SMALL, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
    text |= {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]}
    places = {"vision_start_token_id": start, "vision_end_token_id": end}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video, **places
    )
    _seeded(Qwen2_5_VLForConditionalGeneration, config).save_pretrained(folder)
    sizes = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 1024}}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes),
        chat_template="{% for one in messages %}{{ one['role'] }} {% for part in one['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}",
    ).save_pretrained(folder)
