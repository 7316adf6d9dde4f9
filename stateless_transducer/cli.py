"""The command ``transducer``: dispatches to a command and turns user errors into one line.

Commands are imported on use, so that ``--help`` stays fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from stateless_transducer import __version__
from stateless_transducer.files import printable_text
from stateless_transducer.threads import sleep_while_waiting

Options = TypeVar("Options")

# (heading, {name: (module of stateless_transducer.commands, summary)})
_GROUPS: tuple[tuple[str, dict[str, tuple[str, str]]], ...] = (
    (
        "Try it",
        {"demo": ("demo", "synthesize a corpus, train on it, decode, transcribe, write a report")},
    ),
    (
        "Data",
        {
            "prepare aishell": ("prepare_aishell", "AISHELL-1 (or any corpus in its layout): manifests, fbank, tokens"),
            "prepare musan": ("prepare_musan", "MUSAN, noise to mix into speech: manifests, fbank"),
            "prepare table": (
                "prepare_table",
                "your own data: a tsv / csv / jsonl table, a folder of x.wav + x.txt, or Kaldi's",
            ),
            "prepare lang": ("prepare_lang", "make one token table for several prepared corpora"),
            "prepare ngram": (
                "prepare_ngram",
                "estimate an n-gram language model from texts, for `decode` and `transcribe`",
            ),
            "prepare text": ("prepare_text", "write texts as a model's tokens, for other n-gram tools"),
            "prepare download": ("prepare_download", "fetch AISHELL-1, MUSAN or yesno from OpenSLR and unpack it"),
            "prepare synthetic": ("prepare_synthetic", "write a synthetic Mandarin corpus in AISHELL's layout"),
        },
    ),
    (
        "Model",
        {
            "train": ("train", "train a model"),
            "decode": ("decode", "decode a prepared test set and report the error rate"),
            "compare": ("compare", "compare two results: is one better, or was it chance?"),
            "models": ("models", "list published models: languages, sizes, error rates"),
            "pull": ("pull", "download a published model by its name"),
            "info": ("info", "describe a model: sizes, tokens, front end, training, hashes"),
            "average": ("average", "average checkpoints into one model file"),
            "import": ("import_icefall", "convert a model of icefall, or a Zipformer's ONNX graphs, into a model file"),
            "export icefall": ("export_icefall", "write a model as icefall's pretrained.pt"),
            "export onnx": ("export_onnx", "write a model as ONNX graphs, for sherpa-onnx, onnx-asr and `transcribe`"),
            "export torch": ("export_torch", "write a model as safetensors, torch.export program or TorchScript"),
            "push": ("push", "publish a model: safetensors, ONNX and a model card, uploaded to Hugging Face"),
            "report": ("report", "write a page about an experiment: losses, error rates, token times"),
        },
    ),
    (
        "Use",
        {
            "transcribe": ("transcribe", "transcribe sound files"),
            "stream": (
                "stream",
                "transcribe live sound, with a causal checkpoint or a streaming model of sherpa-onnx",
            ),
            "serve": ("serve", "serve a model for sound files and live sound, with a web page to try it"),
        },
    ),
)
# optional package -> extra that installs it
_EXTRAS = {
    "distributed": "dask",
    "fastapi": "serve",
    "huggingface_hub": "hub",
    "lhotse": "train",
    "lilcom": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxruntime": "onnx",
    "pypinyin": "demo",
    "safetensors": "torch",
    "tensorboard": "train",
    "torch": "torch",
    "uvicorn": "serve",
}
# commands that need more than torch -> extra that installs torch as well
_NEEDS = {"decode": "train", "demo": "train", "export onnx": "export", "push": "export", "train": "train"}
COMMANDS = {name: entry for _, group in _GROUPS for name, entry in group.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 success, 1 failure, 2 usage error."""
    words = sys.argv[1:] if arguments is None else arguments
    return _guarded("transducer", lambda: _dispatch(words))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"transducer {__version__}")
        return 0
    name, options = _find_command(arguments)
    if name is None:
        return _complain_about(arguments)
    return _run(name, options)


def run_script(
    command: Callable[[str, list[str], Options], int], defaults: Options, *, options: type | None = None
) -> int:
    """Run a command as a recipe script does: on the arguments of this process, with the script's own defaults.

    Args:
        command: Called with the script's name, the arguments and the defaults.
        defaults: Values of options that the arguments do not name.
        options: Dataclass of the options, if it is not the type of the defaults.
    """
    script = sys.argv[0]
    return _guarded(
        Path(script).name, lambda: command(script, sys.argv[1:], defaults), options=lambda: options or type(defaults)
    )


def _find_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    for count in (2, 1):
        name = " ".join(arguments[:count])
        if name in COMMANDS:
            return name, arguments[count:]
    return None, arguments


def _complain_about(arguments: list[str]) -> int:
    members = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if members and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print("\n".join(f"  transducer {name:18s} {COMMANDS[name][1]}" for name in members))
        return 0 if len(arguments) > 1 else 2
    unknown = " ".join(arguments[:2]) if members else arguments[0]
    # "prepare tabel", "trian a.wav", "expotr"
    known = members or [*COMMANDS, *(name.split()[0] for name in COMMANDS)]
    candidates = [" ".join(arguments[:2])] if members else [" ".join(arguments[:2]), arguments[0]]
    similar = [name for word in candidates for name in get_close_matches(word, known, n=1, cutoff=0.75)]
    names = ", ".join(members or COMMANDS)
    suggestion = f"did you mean `transducer {similar[0]}`?" if similar else f"commands: {names}."
    print(f"transducer: error: no command {unknown!r}; {suggestion}", file=sys.stderr)
    return 2


def _run(name: str, arguments: list[str]) -> int:
    def command() -> ModuleType:
        return import_module(f"stateless_transducer.commands.{COMMANDS[name][0]}")

    return _guarded(
        "transducer",
        lambda: command().main(f"transducer {name}", arguments) or 0,
        options=lambda: command().Options,
        torch_extra=_NEEDS.get(name, "torch"),
    )


def _guarded(
    program: str,
    run: Callable[[], int],
    *,
    options: Callable[[], type] | None = None,
    torch_extra: str = "train",
) -> int:
    """Run and return the status; print a user error as one line that begins with the program's name.

    Threads that wait are made to sleep: nothing has imported torch yet.

    Args:
        program: Name of the program.
        run: Returns the status.
        options: Returns the dataclass whose flags the line names; None: leave the line unchanged.
        torch_extra: Extra that installs torch and the program's other packages, suggested if torch is missing.
    """
    sleep_while_waiting()
    try:
        try:
            return run()
        finally:
            # not at exit, where Python reports that the reader of the output has gone
            print(end="", flush=True)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of the output has gone; avoid a second error of Python at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as err:
        missing = getattr(err, "name", None) or ""
        extra = torch_extra if missing == "torch" else _EXTRAS.get(missing)
        if os.environ.get("TRANSDUCER_TRACEBACK") or (isinstance(err, ModuleNotFoundError) and extra is None):
            raise
        message = f"{err}: pip install 'stateless-transducer[{extra}]'." if extra else str(err)
        if options is not None and not isinstance(err, ModuleNotFoundError):
            from stateless_transducer.commands.shared.flags import in_flags

            message = in_flags(message, options())
        print(printable_text(f"{program}: error: {message}"), file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as err:
        if str(err).startswith("DataLoader worker (pid") and not os.environ.get("TRANSDUCER_TRACEBACK"):
            advice = "Out of memory is likely if the signal is Killed: lower `--num-workers` or `--max-duration`"
            print(f"{program}: error: {str(err).strip().rstrip('.')}. {advice}.", file=sys.stderr)
            return 1
        if os.environ.get("TRANSDUCER_TRACEBACK") or not _is_out_of_memory(err):
            raise
        reason = f" ({str(err).splitlines()[0]})" if str(err) else ""
        advice = "lower `--max-duration`"
        print(f"{program}: error: out of memory{reason}; {advice}.", file=sys.stderr)
        return 1


def _is_out_of_memory(err: Exception) -> bool:
    """Whether the memory of the machine or a GPU is exhausted, without an import of torch."""
    is_cpu = isinstance(err, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(err)
    return is_cpu or type(err).__name__ == "OutOfMemoryError"


def _help() -> str:
    lines = [
        "transducer: stateless transducer speech recognition, from recordings to text",
        "",
        "usage: transducer COMMAND [OPTIONS]",
        "",
        "transducer COMMAND --help shows the common options of a command, --help-all all of them.",
    ]
    for heading, group in _GROUPS:
        lines += ["", f"{heading}:"]
        lines += [f"  {name:18s} {summary}" for name, (_, summary) in group.items()]
    lines += ["", "TRANSDUCER_TRACEBACK=1 shows the traceback of an error."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
