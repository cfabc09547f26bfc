"""What stands under a command's help: lines to try, as they would be typed."""

CHAT = (
    'modelwright chat "How many circles are there?" --image shapes.png',
    'modelwright chat org/name "Name three rivers." --temperature 0.7 --max-tokens 200',
    "modelwright chat ./checkpoint",
)
GENERATE = (
    "modelwright generate ./checkpoint -i prompts.jsonl -o answers.jsonl",
    "modelwright generate ./checkpoint -i - -o - --max-tokens 100 < prompts.jsonl",
)
SERVE = (
    "modelwright serve vl2-nano",
    "modelwright serve org/name --host 0.0.0.0 --api-key-file keys.txt --max-batch 16",
    "modelwright serve --config serve.yaml --print-config",
)
COMPLETE_IMAGE = (
    "modelwright complete-image photo.png --keep 0.5 -n 4 -o completed.png",
    "modelwright complete-image ./checkpoint --keep 0 --seed 7",
)
LATENCY = ("modelwright bench latency vl2-nano --input-len 100 --output-len 50",)
THROUGHPUT = (
    "modelwright bench throughput vl2-nano --requests 32",
    "modelwright bench throughput ./checkpoint -i prompts.jsonl --request-rate 4 --json",
)
PLAN = (
    "modelwright plan org/name --device 24GiB",
    "modelwright plan ./run.yaml --train --device 80GB,8 --plot memory.svg",
)
TRAIN = (
    "modelwright train run.yaml --dry-run",
    "modelwright train run.yaml optimizer.lr=1e-4 steps=500",
)
CONVERT = (
    "modelwright convert ./mindformers ./huggingface",
    "modelwright convert org/name ./half --dtype float16 --max-shard-size 2GB",
)
QUANTIZE = (
    "modelwright quantize org/name ./int8",
    "modelwright quantize ./checkpoint ./int4 --method int4 --eval text.txt",
)
EVALUATE = (
    "modelwright evaluate ./checkpoint --data held_out.jsonl --exact",
    "modelwright evaluate org/name --tasks mine --include-path ./tasks --limit 100",
)
EXPORT_ONNX = ("modelwright export onnx vl2-nano ./onnx --dtype float16",)
CHECKPOINT_LS = ("modelwright checkpoint ls runs/first",)
CHECKPOINT_VERIFY = ("modelwright checkpoint verify runs/first 200",)
CHECKPOINT_EXPORT = (
    "modelwright checkpoint export runs/first ./model",
    "modelwright checkpoint export runs/lora ./merged 200 --merge --dtype bfloat16",
)
DATA_SHOW = (
    "modelwright data show run.yaml -n 3",
    "modelwright data show run.yaml --eval data.pack=none",
)
DATA_PREPARE = ("modelwright data prepare run.yaml data.cache=cache",)
ENV = ("modelwright env --check",)
MODELS = ("modelwright models --json",)


def shown(lines: tuple[str, ...]) -> str:
    """The lines as help shows them, one below the other."""
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)))
