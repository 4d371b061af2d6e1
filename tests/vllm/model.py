"""Makes what vLLM serves here: `python model.py TOKENIZER OUT`, with vLLM's own Python. Run by server.py.

OUT/model is a Qwen2 of 103,000 random weights with the tokenizer of tests/real, always the same; OUT/adapter changes what it
says. The heads are of the smallest size that vLLM's attention on CPU can do.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

WIDTH, HEADS, LAYERS, RANK = 64, 2, 2, 8
LONGEST = 32_768  # tokens: more than anybody waits for here
ENDS, PADS = 2, 0  # <|im_end|>, <|endoftext|>
# As the templates of Qwen3 do it: what is not to be thought is said to have been thought.
UNTHOUGHT = "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


def main(tokenizer: Path, out: Path) -> None:
    """Write both."""
    torch.manual_seed(0)
    model = out / "model"
    shutil.copytree(tokenizer, model)
    with (model / "chat_template.jinja").open("a", encoding="utf-8") as template:
        template.write(UNTHOUGHT)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=448,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=1,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ENDS,
            pad_token_id=PADS,
        )
    )
    made.to(torch.bfloat16).save_pretrained(model)
    adapter = out / "adapter"
    adapter.mkdir()
    named = [(layer, name) for layer in range(LAYERS) for name in ("q_proj", "v_proj")]
    save_file(
        {key: weight for layer, name in named for key, weight in pair(layer, name)},
        adapter / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "v_proj"]}))


def pair(layer: int, name: str) -> list[tuple[str, torch.Tensor]]:
    """The two factors of what is added to a projection."""
    width = WIDTH if name == "q_proj" else WIDTH // HEADS
    place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
    return [
        (f"{place}.lora_A.weight", torch.randn(RANK, WIDTH)),
        (f"{place}.lora_B.weight", torch.randn(width, RANK)),
    ]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
