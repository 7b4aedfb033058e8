"""Stands in for the `vllm` command: takes its arguments as vLLM's documentation has them, answers
chat completions.

Completions are transformers' own greedy ones, one prompt at a time.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
parser.add_argument("folder")
for name in ("host", "served-model-name", "dtype"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--max-model-len", type=int, required=True)
parser.add_argument("--generation-config", choices=["vllm"], required=True)
parser.add_argument("--fail-with")
given = parser.parse_args()
if given.fail_with:
    raise SystemExit(given.fail_with)

tokenizer: Any = AutoTokenizer.from_pretrained(given.folder)
model: Any = AutoModelForCausalLM.from_pretrained(given.folder, dtype=getattr(torch, given.dtype))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send(
            {"data": [{"id": given.served_model_name}]}, 200 if self.path == "/v1/models" else 404
        )

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["model"] != given.served_model_name or asked["temperature"] != 0:
            self.send({"message": "no such model"}, 404)
            return
        ids = tokenizer.apply_chat_template(
            asked["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True,
            **asked.get("chat_template_kwargs", {}),
        )  # fmt: skip
        n = ids["input_ids"].shape[1]
        assert n + asked["max_tokens"] <= given.max_model_len
        out = model.generate(
            **ids, max_new_tokens=asked["max_tokens"], do_sample=False, pad_token_id=0
        )[0, n:]
        text = tokenizer.decode(out, skip_special_tokens=True)
        usage = {"prompt_tokens": n, "completion_tokens": len(out), "total_tokens": n + len(out)}
        self.send(
            {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
        )

    def send(self, body: dict[str, Any], status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, form: str, *args: Any) -> None:
        pass


HTTPServer((given.host, given.port), Handler).serve_forever()
