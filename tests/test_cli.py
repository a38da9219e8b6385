"""The command line, in this process: what the verbs show and write, and what they say to wrong input."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
import torch
from toy import BATCHES, STACK, Toy, assert_same_run, command, contents, ok, same

import hyperstack as hs
from hyperstack import tasks
from hyperstack.measuring import MEASURED
from hyperstack.reports.text import number, percent, shortened
from hyperstack.telemetry.jsonl import read_record
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.wrapper import WRAPPERS
from hyperstack_cli.interrupt import Interrupt
from hyperstack_cli.main import cli

pytestmark = pytest.mark.usefixtures("elsewhere")


# ---- train


def test_train_writes_a_run(finished):
    path, output, remarks = finished
    files = ["checkpoint.pt", "plan.json", "record.jsonl", "record.rows", "summary.json"]
    assert sorted(p.name for p in path.iterdir()) == files
    summary = json.loads((path / "summary.json").read_text())
    assert summary["stack"] == "Adam(0.01) / SGD(0.01, clip) / SGD"
    assert (summary["epochs"], summary["steps"], summary["batch_size"]) == (2, 2 * BATCHES, 32)
    assert output == (
        f"test error {100 * summary['test_error']:.2f} %, train loss {summary['train_loss']:.4g}, "
        f"{summary['seconds']:.1f} s, 20 steps\n"
        f"run        {path}\n"
        f"inspect    hyperstack inspect {path}\n"
    )
    head, *epochs = remarks.splitlines()
    assert head == f"toy · {summary['stack']} · seed 0 · cpu"
    for i, (line, epoch) in enumerate(zip(epochs, summary["history"], strict=True), 1):
        figures = rf"train loss {epoch['train_loss']:.4g}  test error {100 * epoch['test_error']:.2f} %"
        assert re.fullmatch(rf"epoch {i}/2  {figures}  [\d.]+ s", line)
    assert len(read_record(path / "record.jsonl")) == 2 * BATCHES


def test_quiet_says_the_result_alone(tmp_path):
    output = ok("train", "toy", "--quiet", "--epochs", 1)
    assert re.fullmatch(r"test error [\d.]+ %, train loss [\d.]+, [\d.]+ s, 10 steps\n", output)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["toy-001"]


def test_options_reach_the_run(tmp_path):
    threads = torch.get_num_threads()
    ok(
        *("train", "toy", "--quiet", "--epochs", 1, "--seed", 3, "--batch-size", 100, "--record-every", 2),
        *("--device", "cpu", "--threads", threads, "--data-dir", tmp_path, "--out", tmp_path / "a b" / "[bold]c"),
    )
    plan = RunFolder(tmp_path / "a b" / "[bold]c").read_plan()
    assert (plan.epochs, plan.seed, plan.batch_size, plan.record_every) == (1, 3, 100, 2)
    assert (plan.device, plan.threads, plan.stack) == ("cpu", threads, "Adam / SGD(1e-05)")
    assert read_record(tmp_path / "a b" / "[bold]c" / "record.jsonl").columns["step"].tolist() == [2]


def test_a_run_compiled_or_not(tmp_path, monkeypatch):
    """The choice is the run's own until another is made, and no part of what is trained."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: made.append(function) or function)
    ok("train", "toy", "--quiet", "--epochs", 1, "--compile", "--out", "run")
    assert made
    ok("train", "toy", "--quiet", "--epochs", 2, "--resume", "--out", "run")
    assert RunFolder(tmp_path / "run").read_plan().compile is True
    ok("train", "toy", "--quiet", "--epochs", 3, "--resume", "--no-compile", "--out", "run")
    assert RunFolder(tmp_path / "run").read_plan().compile is False
    plain = ok("train", "toy", "--quiet", "--epochs", 3)
    again = ok("inspect", "run")
    assert plain.split(",")[0].split()[2] in again


def test_paths_are_shown_so_that_they_can_be_typed(tmp_path):
    code, output, _ = command("train", "toy", "--epochs", 1, "--out", "a b/[red]c")
    assert code == 0
    assert "run        a b/[red]c\ninspect    hyperstack inspect 'a b/[red]c'\n" in output


def test_a_diverged_run_is_a_result(tmp_path):
    output = ok("train", "toy", "--quiet", "--stack", "SGD(1e38) / SGD(1e38)", "--out", "run")
    assert output.startswith(
        "diverged in epoch 1: the loss or the network holds numbers that are not finite\ntest error"
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["diverged"] is True
    assert "diverged: 1 epoch, 10 steps" in ok("inspect", "run")
    output = ok("train", "toy", "--out", "run", "--resume", "--epochs", 9)
    assert output.startswith("run is finished already\ndiverged in epoch 1")


# ---- resume


def test_more_epochs(tmp_path, run):
    ok("train", "toy", "--quiet", "--epochs", 1, "--stack", STACK, "--set", "α=0.01", "--out", "run")
    ok("train", "toy", "--quiet", "--epochs", 2, "--resume", "--out", "run")
    assert (tmp_path / "run" / "record.jsonl").read_bytes() == (run / "record.jsonl").read_bytes()
    mine, theirs = (torch.load(path / "checkpoint.pt") for path in (tmp_path / "run", run))
    same(mine["model"], theirs["model"])
    same(mine["optimizer"], theirs["optimizer"])


def test_a_finished_run_says_so_and_stays_as_it_is(finished):
    path, before, _ = finished
    held = contents(path)
    output = ok("train", "toy", "--resume", "--out", path)
    assert output == f"{path} is finished already; for more, ask for --epochs 3 or higher\n{before}"
    assert contents(path) == held


def test_the_options_of_the_run_may_be_repeated_in_other_words(run):
    stack = "Adam( lr = 1e-2 )/SGD(1e-2,clip=True)/SGD"
    assert "finished already" in ok(
        *("train", "toy", "--resume", "--out", run, "--stack", stack, "--seed", 0, "--batch-size", 32)
    )


def test_ctrl_c_ends_a_run_that_can_go_on_bit_for_bit(tmp_path, run, monkeypatch):
    steps, losses = iter(range(100)), Toy.losses

    def interrupted(self, outputs, targets):
        if next(steps) == 12:
            signal.raise_signal(signal.SIGINT)
        return losses(self, outputs, targets)

    monkeypatch.setattr(Toy, "losses", interrupted)
    arguments = ("--stack", STACK, "--set", "α=0.01", "--out", "run")
    code, output, _ = command("train", "toy", *arguments)
    assert (code, output) == (
        130,
        "interrupted after step 13, with a checkpoint; to go on:\n  hyperstack train toy --out run --resume\n",
    )
    assert "interrupted: 1 epoch, 13 steps (13 recorded)" in ok("inspect", "run")
    code, output, _ = command("train", "toy", "--out", "run", "--resume")
    assert code == 0
    assert_same_run(run, tmp_path / "run")


def test_the_first_signal_asks_and_the_second_ends():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert not interrupt()
        signal.raise_signal(signal.SIGTERM)
        assert interrupt()
        assert interrupt.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt()
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- explain and rules


def test_explain_shows_who_learns_what():
    text = ok("explain", "Adam(log(1), beta1=fixed(0.9))/SGD(α, clip)/SGD(per_tensor(2), nesterov, momentum=0.9)")
    assert [line.strip("│├└─ ") for line in text.splitlines()[2:]] == [
        "level 0: Adam updates the network",
        "lr = 1  learned by level 1 as log",
        "beta1 = 0.9  fixed",
        "beta2 = 0.999  learned by level 1 as logit",
        "eps = 1e-08  fixed",
        "off: weight_decay",
        "level 1: SGD updates level 0",
        "lr = α  learned by level 2 as lin",
        "off: momentum, dampening, weight_decay",
        "clip: cumulative, on the gradient that this level receives",
        "level 2: SGD updates level 1",
        "lr = 2  nothing above learns it, one number a tensor",
        "momentum = 0.9  nothing above learns it",
        "off: dampening, weight_decay",
        "nesterov = True, an option",
        "to be bound before use: α",
    ]


def test_explain_shows_where_a_default_rate_comes_from():
    first, second = (hs.parse("Adam / SGD / Adam").ratio(k) for k in (1, 2))
    text = ok("explain", "Adam(α) / SGD / Adam", "--set", "α=0.125")
    assert f"lr = {0.125 * first:g} ({first:g} x the rate below)  learned by level 2 as lin" in text
    assert f"lr = {0.125 * first * second:g} ({second:g} x the rate below)  nothing above" in text
    text = ok("explain", "Adam(α) / SGD / Adam")
    assert f"lr = {first:g} x α  learned by level 2" in text
    assert f"lr = {second:g} x {first:g} x α  nothing above learns it" in text


def test_explain_shows_what_stands_around_a_rule():
    text = ok("explain", "ALRC(Adam(clip, amsgrad), below, n=3, decay1=0.9) / SGD")
    assert [line.strip("│├└─ ") for line in text.splitlines()[1:10]] == [
        "level 0: ALRC around Adam updates the network",
        "lr = 0.001  learned by level 1 as lin",
        "beta1 = 0.9  learned by level 1 as logit",
        "beta2 = 0.999  learned by level 1 as logit",
        "eps = 1e-08  fixed",
        "n = 3  learned by level 1 as log, shared",
        "off: weight_decay",
        "amsgrad = True, an option",
        "decay1 = 0.9, an option",
    ]
    assert "below = True, an option" in text
    assert "clip: cumulative" in text
    assert "n = 3  learned by level 1" in ok("explain", "ALRC(Adam, n=3) / SGD")
    text = ok("explain", "ALRC(SGD(α), n=fixed(β)) / SGD")
    assert "lr = α  learned" in text
    assert "n = β  fixed" in text
    assert "bound before use: α, β" in text


def test_explain_shows_all_of_what_auto_is_short_for():
    text = " ".join(ok("explain", "auto(Adam, every=50)").split())
    assert f"{hs.parse('auto(Adam, every=50)')} ├── level 0" in text
    numbers = ", ".join(f"{name}={value}" for name, value in vars(hs.auto(hs.Adam, every=50)[1].at).items())
    assert numbers.startswith("decay=0.99, every=50, warmup=10, first=1, ")
    assert f"at: average({numbers}), where hypergradients are measured" in text


def test_explain_shows_what_is_shared_and_for_how_long_it_is_learned():
    text = ok("explain", "Adam(fixed_after(shared(1e-3), 1000)) / SGD")
    assert "lr = 0.001  learned by level 1 as lin for 1,000 steps, shared" in text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("width", [60, 80])
def test_rules_lists_every_rule_and_transform(width):
    text = ok("rules", columns=width)
    assert max(map(len, text.splitlines())) <= width
    for name, rule in hs.RULES.items():
        assert re.search(rf"^{name}$", text, re.MULTILINE)
        part = ok("rules", name, columns=width)
        assert part.strip() in text
        for key, h in rule.hyperparameters.items():
            how = h.bijection if h.resolve(None).learned else "fixed"
            assert re.search(
                rf"^  {key} +{re.escape(number(h.default))} +{re.escape(str(h.domain))} +{how} ", part, re.M
            )
        for key in rule.options:
            assert re.search(rf"^  {key} .* option ", part, re.MULTILINE)
    for name, transform in hs.TRANSFORMS.items():
        part = text.partition(f"\n{name}, a gradient transform\n")[2].partition("\n\n")[0]
        assert part.split()[0] == transform.__doc__.split()[0]
        for f in (f for f in fields(transform) if f.name != "names"):
            shown = "needed" if f.default is MISSING else "flag" if f.default is False else number_or_text(f.default)
            assert re.search(rf"^  {f.name} +{shown} ", part, re.MULTILINE), (f.name, part)


@pytest.mark.parametrize("width", [60, 80])
def test_rules_lists_what_stands_around_a_rule(width):
    text = ok("rules", columns=width)
    described = json.loads(ok("rules", "--json"))["wrappers"]
    assert set(described) == set(WRAPPERS)
    for name, wrapper in WRAPPERS.items():
        part = ok("rules", name, columns=width)
        assert part.startswith(f"{name}, around another rule\n")
        assert part.strip() in text
        assert "a level above starts at" not in part
        for key, h in wrapper.hyperparameters.items():
            assert re.search(
                rf"^  {key} +{re.escape(number(h.default))} +{re.escape(str(h.domain))} +{h.bijection} ", part, re.M
            )
        for key in wrapper.options:
            assert re.search(rf"^  {key} .* option ", part, re.MULTILINE)
        assert list(described[name]["hyperparameters"]) == list(wrapper.hyperparameters)
        assert list(described[name]["options"]) == list(wrapper.options)
        assert described[name]["base"] == wrapper.default.__name__
        assert described[name]["source"] == wrapper.source
        assert list(json.loads(ok("rules", name, "--json"))["wrappers"]) == [name]
    assert json.loads(ok("rules", "Adam", "--json"))["wrappers"] == {}


@pytest.mark.parametrize("width", [60, 80])
def test_rules_shows_whatever_a_stack_is_written_with(width):
    """By its name alone, as in the list of all; the defaults are those that are used."""
    text, found = ok("rules", columns=width), json.loads(ok("rules", "--json"))
    for kind, names in (("transforms", hs.TRANSFORMS), ("places", MEASURED), ("recipes", ["auto"])):
        assert list(found[kind]) == sorted(names)
        for name in names:
            assert ok("rules", name, columns=width).strip() in text
            assert json.loads(ok("rules", name, "--json"))[kind] == {name: found[kind][name]}
    place, stack = found["places"]["average"]["options"], hs.auto()
    options = {name: option["default"] for name, option in found["recipes"]["auto"]["options"].items()}
    defaults = {name: option["default"] for name, option in place.items() if name != "decay"}
    assert defaults == {name: getattr(hs.average(0.5), name) for name in defaults}
    assert len(defaults) == len(place) - 1
    assert options.pop("rate") == stack[1].settings["lr"].value
    assert options == {name: getattr(stack[1].at, name) for name in place}


def number_or_text(value):
    return value if isinstance(value, str) else number(value)


def test_rules_for_programs():
    found = json.loads(ok("rules", "--json"))
    assert set(found["rules"]) == set(hs.RULES)
    assert set(found["transforms"]) == set(hs.TRANSFORMS)
    shown = found["transforms"]["norm"]["options"]
    assert list(shown) == ["names", "c", "per"]
    assert shown["c"] == {"default": None, "domain": "(0, inf)", "doc": "the largest norm"}
    assert shown["per"] == {"default": "level", "domain": "tensor or level", "doc": "whose norm is limited"}
    assert found["transforms"]["cumulative"]["options"]["skip_zeros"]["default"] is False
    for name, rule in hs.RULES.items():
        shown = found["rules"][name]
        assert list(shown["hyperparameters"]) == list(rule.hyperparameters)
        assert list(shown["options"]) == list(rule.options)
        assert shown["source"] == rule.source
        assert shown["hyperparameters"]["lr"]["default"] == rule.hyperparameters["lr"].default


# ---- help


def test_every_file_of_verbs_is_a_verb_that_explains_itself():
    listed = ok("--help")
    assert "..." not in listed.split("Commands:")[1], "a summary is cut off"
    for verb in cli.list_commands(None):
        summary = re.search(rf"^  {verb} +(\S.*)$", listed, re.MULTILINE)[1]
        assert summary.endswith(".")
        text = ok(verb, "--help")
        assert "Usage: hyperstack" in text
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(rf"^ +hyperstack {verb} ", text, re.MULTILINE), f"{verb} --help shows no example"
        for option in cli.get_command(None, verb).params:
            assert option.param_type_name == "argument" or option.help, f"{verb} does not explain {option.opts}"


def test_the_help_of_train_names_every_task():
    text = ok("train", "--help")
    for name, task in tasks.TASKS.items():
        line = rf"^ +{name} +{task.epochs} +{task.batch_size}  {re.escape(task.summary)}$"
        assert re.search(line, text, re.MULTILINE), line
    single = [name for name, task in tasks.TASKS.items() if task.threads == 1]
    assert f"1 for {' and '.join(single)}, else" in " ".join(text.split())
    assert all(task.threads in (1, None) for task in tasks.TASKS.values())


def test_the_version_is_the_packages():
    assert ok("--version") == f"hyperstack {hs.__version__}\n"


def test_help_does_not_wait_for_torch():
    program = (
        "import sys\n"
        "from hyperstack_cli.main import cli, main\n"
        "for verb in [None, *cli.list_commands(None)]:\n"
        "    sys.argv = ['hyperstack', *([verb] if verb else []), '--help']\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "slow = {'torch', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'{slow} imported' if slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 1 + len(cli.list_commands(None))


# ---- what is shown


def test_numbers_as_people_read_them():
    shown = [0.0, -0.0, 1, 0.00379, 1e-5, -1.23456e-7, 117500, 99999, 1e300, float("nan"), float("-inf"), None]
    assert [number(x) for x in shown] == [
        *("0", "0", "1", "0.00379", "1e-5", "-1.235e-7", "1.175e5", "1e5", "1e300", "nan", "-inf", "-")
    ]
    assert number(0.123456, 3) == "0.123"
    assert (percent(0.0305), percent(None)) == ("3.05 %", "-")
    assert (shortened("abcdef", 6), shortened("abcdef", 4), shortened("abc", 1)) == ("abcdef", "abc…", "…")
