"""From a GGUF file to a folder in Hugging Face format, which vLLM on the CPU wants.

    python convert.py MODEL.gguf FOLDER

transformers reads the GGUF and dequantises it, but then refuses to save the model (it is marked as quantised), so
the weights go into a fresh model of the same configuration. What older readers miss in transformers 5's files is
added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main(source: Path, folder: Path) -> None:
    """Write the folder, then read it back."""
    print(f"reading {source.name}", flush=True)
    given: dict[str, Any] = {"gguf_file": source.name}
    quantised = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **given)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **given)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    print("making a model of the same shape", flush=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    print(f"writing {folder.name}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mend(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        mend(folder / "config.json", rope_theta=rope["rope_theta"])
    print("checking it", flush=True)
    check(folder, tokenizer, model)


def mend(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=2) + "\n")


def check(folder: Path, tokenizer: Any, model: Any) -> None:
    """Read the folder back: the same tokens, the same next one."""
    again = AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is"
    tokens = tokenizer(text)["input_ids"]
    if again(text)["input_ids"] != tokens:
        sys.exit("The converted tokenizer does not give the same tokens as the GGUF's.")
    AutoConfig.from_pretrained(folder)
    with torch.no_grad():
        before = model(torch.tensor([tokens])).logits[0, -1].argmax()
        after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(torch.tensor([tokens]))
    if before != after.logits[0, -1].argmax():
        sys.exit("The converted weights do not give the same answer as the GGUF's.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
