"""The examples below each verb's help; a test reads them as the command line would."""

EXAMPLES = {
    "": (
        "refusal doctor                            # is everything here?",
        "refusal run embedded --preset quick       # a first result",
        "refusal inspect ./my-model                # will it work on mine?",
    ),
    "run": (
        "refusal run embedded --preset quick        # what 8 minutes hold",
        "refusal run Qwen/Qwen2.5-7B-Instruct       # a hub id, the paper's sizes",
        "refusal run ./my-model --prompts harmful=bad.txt harmless=good.txt",
        "refusal run embedded --over-refusal xstest --tasks mmlu --n-items 200",
        "refusal run ./my-model --quantize 4bit",
        "refusal run --config my.toml --out runs/mine    # see: refusal config",
    ),
    "extract": ("refusal extract ./my-model --n-train 64",),
    "select": (
        "refusal select ./my-model --full-map       # every score, for the maps",
        "refusal select ./my-model --kl-threshold 0.2 --strict",
        "refusal select ./my-model --method dim cosmic lda kmeans harmfulness",
    ),
    "transfer": (
        "refusal transfer embedded --transfer-systems default none cautious permissive",
        "refusal transfer ./my-model --transfer-turns 0 1 3",
        "refusal transfer ./my-model --transfer-languages de zh --data-dir data",
    ),
    "generate": (
        "refusal generate ./my-model --max-new-tokens 128",
        "refusal generate ./my-model --engine openai --engine-ablated edited",
    ),
    "evaluate": (
        "refusal evaluate runs/embedded --over-refusal xstest orbench-hard",
        "refusal evaluate runs/embedded --judges substring llama-guard-3",
        "refusal evaluate runs/embedded --tasks arc_challenge --n-items 200",
        "refusal evaluate runs/embedded --seeds 5",
    ),
    "report": (
        "refusal report runs/embedded",
        "refusal report runs/embedded --show-completions --out shown.html",
        "refusal report runs/embedded --figures pdf    # for LaTeX",
    ),
    "compare": (
        "refusal compare runs/embedded runs/other",
        "refusal compare runs/a runs/b runs/c --out compared.html",
    ),
    "inspect": (
        "refusal inspect Qwen/Qwen2.5-7B-Instruct",
        "refusal inspect ./my-model --blocks model.layers --writers self_attn mlp",
    ),
    "chat": (
        "refusal chat embedded               # with the direction in runs/embedded",
        "refusal chat ./my-model --direction runs/mine/direction.safetensors",
        "refusal chat embedded --temperature 1 < questions.txt > replies.txt",
    ),
    "serve": (
        "refusal serve runs/embedded                 # every condition of a run",
        "refusal serve owner/model --port 8001       # a model as it is",
        "refusal serve runs/mine --requests-per-minute 600 --answer-tokens 512",
    ),
    "export": (
        "refusal export runs/embedded --as model         # transformers loads it",
        "refusal export runs/embedded --as lora --out adapter",
        "refusal export runs/embedded --as model --strength 0.5 --norm column",
        "refusal export runs/mine --as model --stream    # in little memory",
    ),
    "audit": (
        "refusal audit embedded --budget-minutes 10 --n-test 50 --max-new-tokens 64",
        "refusal audit runs/mine --attacks rank iterated --over-refusal xstest",
        "refusal audit ./my-model --budget-tokens 2000000 --tasks arc_challenge@100",
    ),
    "monitor": (
        "refusal monitor fit embedded --out watch",
        "refusal monitor fit runs/mine --out watch --calibration traffic.jsonl",
        "refusal monitor score watch prompts.jsonl > scores.jsonl",
        "refusal monitor evaluate watch --over-refusal xstest --jailbreaks aim.jsonl",
    ),
    "forensics": (
        "refusal forensics ./suspect --base owner/model",
        "refusal forensics ./suspect                  # only exact projections are seen",
        "refusal forensics ./suspect --base owner/model --prove",
        "refusal forensics ./adapter --base owner/model --out examined",
    ),
    "diff": (
        "refusal diff owner/model ./edited ./adapter --n-test 50 --max-new-tokens 64",
        "refusal diff runs/mine runs/mine/export/model --over-refusal xstest",
        "refusal diff owner/model ./a ./b --run runs/mine --tasks arc_challenge@100",
        "refusal diff ./base ./release --fail-on 'refusal_change<-0.05' 'kl>0.1'",
    ),
    "repair": (
        "refusal repair ./suspect --base owner/model",
        "refusal repair ./suspect --base owner/model --out repaired",
        "refusal repair ./suspect --base owner/model --as lora --out adapter",
    ),
    "config": (
        "refusal config --preset paper > run.toml",
        "refusal config ./my-model --n-test 200 --controls 16 > run.toml",
    ),
    "doctor": (
        "refusal doctor",
        "refusal doctor Qwen/Qwen2.5-7B-Instruct --device cuda",
    ),
    "estimate": (
        "refusal estimate embedded --preset quick                  # here",
        "refusal estimate owner/model --minutes 30                 # what fits",
        "refusal estimate owner/model --device h100 --count 4",
        "refusal estimate owner/model --device h100 --price-per-device-hour 3",
    ),
    "completion": (
        "refusal completion bash >> ~/.bashrc",
        "refusal completion zsh > ~/.zfunc/_refusal",
        "refusal completion fish > ~/.config/fish/completions/refusal.fish",
    ),
}
