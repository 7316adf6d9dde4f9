"""Choice of the library of matrix products: measured once, exact, and fixed by the user."""

from __future__ import annotations

import json

import pytest
import torch

from stateless_transducer import products
from stateless_transducer.cli import main
from stateless_transducer.products import VARIABLE, Products, choose_products, measure_products, use_fastest_products

pytestmark = pytest.mark.skipif(not products._has_switch(), reason="torch without a choice")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE)
    products._measured.cache_clear()
    yield
    products._set_precision("none")
    products._measured.cache_clear()


@pytest.mark.parametrize(
    ("errors", "gains", "choice"),
    [
        ((2.4e-7, 4e-7), (2.3, 1.5), "onednn"),
        ((2.4e-7, 4e-7), (2.3, 0.5), "default"),
        ((2.4e-7, 4e-7), (1.1, 1.1), "default"),
        ((2.4e-7, 3e-3), (9.0, 9.0), "default"),
        (None, (9.0, 9.0), "default"),
    ],
    ids=["faster", "slower when small", "no faster", "inexact", "one library"],
)
def test_faster_products_are_chosen_if_they_are_exact(monkeypatch, errors, gains, choice):
    gains = iter(gains)
    monkeypatch.setattr(products, "_errors", lambda generator: errors)
    monkeypatch.setattr(products, "_gain", lambda *shape: next(gains))
    assert measure_products().choice == choice


def test_self_test_measures_what_it_changes_and_leaves_nothing_changed():
    threads, before = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
    generator = torch.Generator().manual_seed(0)
    errors = products._errors(generator)
    assert errors is None or 0 < errors[0] < 1e-5
    assert products._gain(8, 16, 16, generator) > 0
    measure_products()
    assert (torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision) == (threads, before)


def test_measurement_is_stored_and_a_damaged_one_replaced(monkeypatch, tmp_path):
    path = tmp_path / "stateless-transducer" / "products.json"
    measured = Products("onednn", "fast", (2.0, 3.0), (1e-7, 2e-7))
    monkeypatch.setattr(products, "measure_products", lambda: measured)
    for content in (None, "not json", "[1]", "{}"):
        if content is not None:
            path.write_text(content)
        products._measured.cache_clear()
        assert choose_products() == measured
    # written by a version with other choices, or changed
    for before, after in (('"onednn"', '"other"'), ("2.0", '"fast"')):
        path.write_text(path.read_text().replace(before, after))
        products._measured.cache_clear()
        assert choose_products() == measured
    assert list(json.loads(path.read_text()).values())[0]["gains"] == [2.0, 3.0]
    products._measured.cache_clear()
    monkeypatch.setattr(products, "measure_products", lambda: pytest.fail("measured again"))
    assert choose_products() == measured


def test_choice_of_the_user_counts(monkeypatch):
    monkeypatch.setenv(VARIABLE, "onednn")
    assert use_fastest_products().choice == "onednn"
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    products._set_precision("tf32")
    use_fastest_products()
    assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match=rf"{VARIABLE}.*default.*'mkl'"):
        choose_products()


def test_info_describes_the_machine(monkeypatch, capsys):
    monkeypatch.setattr(products, "measure_products", lambda: Products("onednn", "fast", (2.0, 3.0), (1e-7, 2e-7)))
    assert main(["info", "--machine"]) == 0
    assert "2.00" in (text := capsys.readouterr().out) and "onednn 2.0e-07" in text
    assert main(["info", "--machine", "--output-format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["products"] == "onednn"
    with pytest.raises(SystemExit) as stopped:
        main(["info"])
    assert stopped.value.code == 2 and "--machine" in capsys.readouterr().err
