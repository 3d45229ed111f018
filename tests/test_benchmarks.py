"""Every benchmark runs with tiny settings, leaves no process behind, and reports everything."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from compile_scale import STAGES, slope  # noqa: E402 - the folder is no package
from explain_calibration import GRAPHS  # noqa: E402
from straggler_case import CONTENDERS as WAYS  # noqa: E402
from straggler_report import Reached, pairs, tau, verdict_lines  # noqa: E402
from sync_report import CONTENDERS, RATIOS, crossing, crossing_text, crossings  # noqa: E402
from table import QUICK_CASES  # noqa: E402

RUN_SECONDS = 300
END_SECONDS = 20


def processes_of(session: int) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(one.pid) == session:
                found.append(one)
    return found


def report_of(name: str, folder: Path) -> dict:
    """Run a benchmark in a session of its own and return its JSON."""
    program = [sys.executable, BENCHMARKS / name, "--quick", "--json", folder / "report.json"]
    with subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    ) as running:
        try:
            said, errors = running.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            for one in processes_of(running.pid):
                one.kill()
            raise
    assert running.returncode == 0, errors
    assert said.strip()
    _, left = psutil.wait_procs(processes_of(running.pid), timeout=END_SECONDS)
    assert left == []
    return json.loads((folder / "report.json").read_text())


def test_a_synchronous_step_beside_its_peers(tmp_path):
    report = report_of("sync_step.py", tmp_path)
    (result,) = report["results"]
    assert (result["model"], result["batch"]) == ("softmax", 32)
    found = result["contenders"]
    assert tuple(found) == CONTENDERS
    skipped = {name for name in found if "skipped" in found[name]}
    assert skipped <= {"mpi", *(["ddp"] if find_spec("torch") is None else [])}
    assert all(found[name]["skipped"] for name in skipped)
    for name in found.keys() - skipped:
        times = [found[name][key] for key in ("min_us", "median_us", "max_us")]
        assert times == sorted(times)
        assert times[0] > 0
        assert len(found[name]["samples_us"]) == report["repetitions"]
    assert found["flowml"]["median_step_of_rank_0_us"] > 0
    assert tuple(result["ratios"]) == RATIOS
    for name, ratio in result["ratios"].items():
        assert (ratio is None) == bool(skipped & set(name.split("/")))
    same = result["difference_from_flowml"]
    assert set(same) == {"ddp", "dask", "mpi"} - skipped
    assert all(difference < 1e-5 for difference in same.values())
    assert set(report["crossings"]) == {"numpy1", "numpy2"}


def test_compile_time_by_size(tmp_path):
    report = report_of("compile_scale.py", tmp_path)
    for axis in ("replicas", "operators"):
        sizes = [point[axis] for point in report[axis]["points"]]
        assert sizes == sorted(set(sizes))
        assert set(report[axis]["slopes"]) == set(STAGES)
        assert all(point[stage] > 0 for point in report[axis]["points"] for stage in STAGES)


def test_explain_beside_what_a_run_does(tmp_path):
    report = report_of("explain_calibration.py", tmp_path)
    assert [result["graph"] for result in report["results"]] == list(GRAPHS)
    for result in report["results"]:
        assert len(result["predicted"]) == len(result["measured"]) + 1 == 2
        assert result["ratio"] == sum(result["predicted"]) / 2 / result["measured"][0] > 0
        assert result["bytes_ratios"] == pytest.approx({"written": 1.0, "read": 1.0}, rel=0.01)
        assert result["counted_bytes"]["written"] > 0


def test_push_and_pull_of_a_table(tmp_path):
    report = report_of("table.py", tmp_path)
    found = [(result["case"], result["replicas"]) for result in report["results"]]
    assert found == [(case, count) for case in QUICK_CASES for count in (1, 2)]
    names = {"limit", "flowml", "rpc", "actor", "ray"} - set(report["skipped"])
    assert set(report["skipped"]) <= {"ray"}
    for result in report["results"]:
        assert set(result["contenders"]) == names
        for times in result["contenders"].values():
            assert 0 < times["fastest_tenth_us"] <= times["median_us"]
            assert len(times["samples_us"]) == report["repetitions"] == 1
        assert result["contenders"]["flowml"]["wall_us"] > 0
        for ratios in (result["ratios"], result["ratios_of_fastest_tenth"]):
            others = {f"{name}/flowml" for name in names - {"limit", "flowml"}}
            assert set(ratios) == {"flowml/limit", *others}
            assert all(ratio > 0 for ratio in ratios.values())


def test_a_simulated_step_beside_a_real_one(tmp_path):
    report = report_of("simulated_step.py", tmp_path)
    assert [result["graph"] for result in report["results"]] == ["ssp", "asgd"]
    for result in report["results"]:
        assert len(result["simulated"]) == len(result["real"]) + 1 == 2
        assert result["ratio"] == sum(result["simulated"]) / 2 / result["real"][0] > 0
        # Nobody is sooner than the steps that were told, but for which of them were drawn.
        for alone, step in zip(result["alone"], result["simulated"], strict=True):
            assert step > alone / 2 > 0


def test_a_straggler_in_real_and_in_virtual_time(tmp_path):
    report = report_of("straggler.py", tmp_path)
    assert report["work_seconds"] > 0
    (found,) = report["worlds"].values()
    assert list(found["contenders"]) == list(WAYS) == list(report["rates"])
    for contender in found["contenders"].values():
        for times in contender.values():
            assert len(times["each_seconds"]) == report["repetitions"] == 1
            assert times["seconds"] > 0
            assert times["examples"] > 0
    assert found["contenders"]["sync"]["real"]["times_sooner"] == 1
    assert len(found["pairs"]) == len(WAYS) * (len(WAYS) - 1) // 2
    assert -1 <= found["kendall_tau"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the CPU clocks of other processes")
def test_what_the_dashboard_costs(tmp_path):
    report = report_of("dashboard.py", tmp_path)
    (results,) = report["results"].values()
    assert set(results) == {"open / idle", "idle / without", "without / without"}
    for found in results.values():
        assert len(found["cpu_us_per_step"]) == report["repetitions"] == 2
        assert all(cpu > 0 for pair in found["cpu_us_per_step"] for cpu in pair)
        quarter, three = found["quartiles"]
        assert 0 < quarter <= found["ratio"] <= three
        assert all(0 < share < 1 for share in found["scheduler_share"])


def test_word_vectors(tmp_path):
    report = report_of("skip_gram.py", tmp_path)
    assert report["words_per_second"] == pytest.approx(3 * report["words"] / report["seconds"])
    assert report["loss"][1] < report["loss"][0] / 2
    assert len(report["spearman_by_epoch"]) == 3
    assert report["spearman"] == pytest.approx(report["spearman_by_epoch"][-1], abs=1e-3)
    assert report["spearman"] > 0.4  # one pair in ten is alike: 0.52 is all that there is
    assert report["pairs"] == report["pairs_given"] == 300


def test_slope_of_a_power():
    assert slope([64, 128, 512], [64**1.5, 128**1.5, 512**1.5]) == pytest.approx(1.5)


def test_where_gains_begin():
    assert crossing([(10.0, 0.5), (1000.0, 2.0)]) == ("from", pytest.approx(100))
    assert crossing([(1000.0, 2.0), (10.0, 1.1), (100.0, 0.9)])[0] == "from"
    assert crossing([(10.0, 1.5), (20.0, 1.1)]) == ("everywhere", 10.0)
    assert crossing([(10.0, 1.5), (20.0, 0.9)]) == ("nowhere", 20.0)


def test_pairs_within_the_spread_have_no_order():
    def times(**seconds):
        return {name: Reached(each, (1.0,)) for name, each in seconds.items()}

    real = times(sync=(2.0, 2.1), a=(1.0, 1.1), b=(1.05, 1.3))
    assert pairs(real, real) == {("a", "b"): "near", ("a", "sync"): "same", ("b", "sync"): "same"}
    turned = times(sync=(1.0, 1.0), a=(2.0, 2.1), b=(1.5, 3.0))
    assert set(pairs(real, turned).values()) == {"near", "swapped"}
    assert tau(real, real) == 1.0
    assert tau(real, turned) == pytest.approx(-0.333)
    assert verdict_lines(real)[0] == "  sync loses to a (1.95 times), b (1.74 times)"
    assert "SYNC WINS" in verdict_lines(turned)[0]


def test_the_last_line_says_where_two_replicas_pay():
    def result(floor: float, one: float, two: float) -> dict:
        ratios = {"numpy1/flowml": one, "numpy2/flowml": two}
        return {"contenders": {"floor": {"median_us": floor}}, "ratios": ratios}

    text = crossing_text(crossings([result(10, 0.5, 0.4), result(1000, 2.0, 0.8)]))
    assert "1 BLAS thread from a gradient of 100 us on" in text
    assert "2 BLAS threads at no setting measured (gradients of up to 1,000 us)" in text
