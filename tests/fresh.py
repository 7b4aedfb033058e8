"""What a user of an export has: transformers, PEFT and the folder, in a fresh process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RELOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, dtype, prompts, length = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(base)
texts = []
for prompt in prompts:
    turn = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", enable_thinking=False)
    ids = ids if hasattr(ids, "shape") else ids["input_ids"]
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
    texts.append(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))
print(json.dumps(texts))
"""


def reload(
    base: Path, adapter: Path | None, dtype: str, prompts: Sequence[str], length: int = 16
) -> list[str]:
    """Greedy completions of a folder, perhaps with an adapter, in a process that knows transformers
    and PEFT only.
    """
    argument = json.dumps([str(base), adapter and str(adapter), dtype, list(prompts), length])
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, argument], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    texts: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return texts
