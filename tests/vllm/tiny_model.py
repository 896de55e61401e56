"""Write a Llama of 2 MB with random weights and its own tokenizer. Runs under the real vLLM's Python: see start.py."""

from __future__ import annotations

import json
import pydoc_data.topics  # English prose that every Python has, to train the tokenizer on
import sys
from pathlib import Path

VOCAB, HIDDEN, LAYERS, HEADS, HEAD_DIM, FFN, CONTEXT = 2048, 128, 2, 2, 64, 256, 2048
SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
BOS, EOS, PAD = 0, 1, 2
# How strongly the last layer favours the end token. At temperature 1 this makes answers of a random length, about 80
# tokens on average; `ignore_eos` in a request gives an exact length.
EOS_PULL = 0.47

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% if tools %}{{ '<|system|>' }}{{ tools | tojson }}{{ '<|eos|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{{ '<|eos|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "head_dim": HEAD_DIM, "hidden_act": "silu", "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.02, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
    "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False,
    "bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD], "chat_template": CHAT_TEMPLATE,
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(0)

    def noise(rows: int, columns: int, scale: float):
        return torch.randn(rows, columns, generator=random) * scale

    width = HEADS * HEAD_DIM
    embed, head = noise(VOCAB, HIDDEN, 0.5), noise(VOCAB, HIDDEN, 0.15)
    # Dimension 0 of the hidden state is a constant that no layer reads or writes, and only the end token's row of the
    # output matrix looks at it.
    embed[:, 0] = 1.0
    head[:, 0] = 0.0
    head[: len(SPECIAL)] = 0.0
    head[: len(SPECIAL), 0] = -8.0  # never say a special token ...
    head[EOS, 0] = EOS_PULL * 10  # ... but the end token
    weights = {"model.embed_tokens.weight": embed, "lm_head.weight": head, "model.norm.weight": torch.ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        reads = {f"self_attn.{name}": noise(width, HIDDEN, 0.08) for name in ("q_proj", "k_proj", "v_proj")}
        writes = {"self_attn.o_proj": noise(HIDDEN, width, 0.08)}
        reads |= {f"mlp.{name}": noise(FFN, HIDDEN, 0.08) for name in ("gate_proj", "up_proj")}
        writes |= {"mlp.down_proj": noise(HIDDEN, FFN, 0.08)}
        for matrix in reads.values():
            matrix[:, 0] = 0.0
        for matrix in writes.values():
            matrix[0] = 0.0
        norms = {name: torch.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
        weights |= {f"{prefix}{name}.weight": value for name, value in (reads | writes | norms).items()}
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "config.json": CONFIG,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD},
    }
    for name, value in pages.items():
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    write_tokenizer(folder)
    write_weights(folder)


if __name__ == "__main__":
    main()
