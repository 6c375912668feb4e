"""Our models inside pytorch-forecasting: its own conformance suite, and the contracts that the suite does not test."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("pytorch_forecasting")
import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from pytorch_forecasting import Baseline, GroupNormalizer, MultiNormalizer, TimeSeriesDataSet
from pytorch_forecasting.data import EncoderNormalizer, NaNLabelEncoder, TorchNormalizer
from pytorch_forecasting.metrics import (
    MAE,
    RMSE,
    SMAPE,
    BetaDistributionLoss,
    CrossEntropy,
    LogNormalDistributionLoss,
    MultiLoss,
    NegativeBinomialDistributionLoss,
    NormalDistributionLoss,
    PoissonLoss,
    QuantileLoss,
)
from pytorch_forecasting.tuning import Tuner
from pytorch_forecasting.utils import check_estimator

from xlstm_forecast.adapters.pytorch_forecasting import XLSTM, XLSTMMixer, XLSTMTime, accelerate
from xlstm_forecast.adapters.pytorch_forecasting.packages import synthetic_panel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

MODELS = pytest.mark.parametrize("model_class", [XLSTM, XLSTMMixer, XLSTMTime])
SMALL = {"hidden_size": 16, "num_heads": 2, "blocks": "s", "dropout": 0.0}
QUIET = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}


def make_dataset(data=None, **options):
    """Every column role, encoder lengths 5 to 10 and decoder lengths 2 to 4."""
    shape = {
        "target": "volume",
        "min_encoder_length": 5,
        "max_encoder_length": 10,
        "min_prediction_length": 2,
        "max_prediction_length": 4,
        "static_categoricals": ["agency"],
        "static_reals": ["population"],
        "time_varying_known_categoricals": ["month"],
        "time_varying_known_reals": ["time_idx", "discount"],
        "time_varying_unknown_categoricals": ["state"],
        "time_varying_unknown_reals": ["volume", "stock"],
        "target_normalizer": GroupNormalizer(groups=["agency", "sku"], transformation="softplus"),
        "add_relative_time_idx": True,
        "add_target_scales": True,
        "add_encoder_length": True,
        **options,
    }
    data = panel() if data is None else data
    return TimeSeriesDataSet(data, time_idx="time_idx", group_ids=["agency", "sku"], **shape)


def panel(**options):
    data = synthetic_panel(**options)
    data["state"] = np.where(data["stock"] > data["stock"].median(), "much", "little")
    return data


def one_batch(dataset, size=16, start=0):
    """A batch of spread windows, so that lengths differ: (x, y)."""
    step = max(1, len(dataset) // size)
    samples = [dataset[i] for i in range(start, len(dataset), step)][:size]
    return dataset._collate_fn(samples)


def rows(x, index):
    """Some rows of x, padded only as far as these rows need."""
    picked = {k: [t[index] for t in v] if isinstance(v, (list, tuple)) else v[index] for k, v in x.items()}
    past, future = (int(x[f"{part}_lengths"][index].max()) for part in ("encoder", "decoder"))
    for key, value in picked.items():
        length = past if key.startswith("encoder_") else future
        if key.startswith(("encoder_", "decoder_")) and not key.endswith("lengths"):
            picked[key] = [t[:, :length] for t in value] if isinstance(value, list) else value[:, :length]
    return picked


def build(model_class, dataset, **options):
    torch.manual_seed(0)
    return model_class.from_dataset(dataset, **{**SMALL, **options}).eval()


def fit(model, dataset, steps=4, validation=None, **trainer):
    options = {"max_steps": steps, "max_epochs": -1, "enable_model_summary": False}
    runner = pl.Trainer(**{**QUIET, **options, **trainer})
    loader = dataset.to_dataloader(train=True, batch_size=16, num_workers=0)
    runner.fit(model, loader, validation)
    return runner


# --- their suite ---


def test_xlstm_passes_their_conformance_suite():
    results = check_estimator(XLSTM, raise_exceptions=True, verbose=0)
    assert len(results) == 16
    assert set(results.values()) == {"PASSED"}


@pytest.mark.parametrize("model_class", [XLSTMMixer, XLSTMTime])
def test_the_other_models_pass_it_for_linkage_examples_and_one_loss_of_each_kind(model_class):
    name = model_class.__name__
    losses = ("QuantileLoss", "MAE", "NormalDistributionLoss")
    results = check_estimator(
        model_class,
        raise_exceptions=True,
        verbose=0,
        tests_to_run=["test_pkg_linkage", "test_doctest_examples", "test_integration"],
        fixtures_to_exclude=[
            f"test_integration[{name}_pkg-base_params-0-{type(loss).__name__}]"
            for loss in model_class.pkg.losses()
            if type(loss).__name__ not in losses
        ],
    )
    assert len(results) == 5
    assert set(results.values()) == {"PASSED"}


# --- contracts ---


@MODELS
def test_the_future_target_and_unknown_columns_of_the_decoder_are_never_read(model_class):
    dataset = make_dataset()
    model, (x, _) = build(model_class, dataset), one_batch(dataset)
    before = model(x)["prediction"]
    known = [dataset.reals.index(name) for name in ("time_idx", "discount", "relative_time_idx")]
    spoiled = {k: v.clone() for k, v in x.items()}
    hidden = [i for i in range(len(dataset.reals)) if i not in known]
    spoiled["decoder_cont"][..., hidden] = float("nan")
    spoiled["decoder_target"] += 1e6
    spoiled["decoder_cat"][..., dataset.flat_categoricals.index("state")] = 99
    torch.testing.assert_close(model(spoiled)["prediction"], before, rtol=0, atol=0)
    spoiled["decoder_cont"][..., known] += 1
    assert (model(spoiled)["prediction"] - before).abs().amax((1, 2)).min() > 0  # the known ones are


@MODELS
def test_padding_is_ignored_and_a_row_alone_is_the_row_in_any_batch(model_class):
    dataset = make_dataset()
    model, (x, _) = build(model_class, dataset), one_batch(dataset)
    assert x["encoder_lengths"].unique().numel() > 2
    assert x["decoder_lengths"].unique().numel() > 1
    together = model(x)["prediction"]
    spoiled = {k: v.clone() for k, v in x.items()}
    for part in ("encoder", "decoder"):
        beyond = torch.arange(x[f"{part}_cont"].shape[1]) >= x[f"{part}_lengths"][:, None]
        spoiled[f"{part}_cont"][beyond] = 77.0
        spoiled[f"{part}_target"][beyond] = 77.0
        spoiled[f"{part}_cat"][beyond] = 1
    scattered = model(spoiled)["prediction"]
    for b in range(0, len(together), 3):
        steps = int(x["decoder_lengths"][b])
        alone = model(rows(x, [b]))["prediction"][0, :steps]
        torch.testing.assert_close(alone, together[b, :steps])
        torch.testing.assert_close(scattered[b, :steps], together[b, :steps])


@MODELS
@pytest.mark.parametrize("role", ["encoder_target", "population", "discount", "stock", "agency", "month", "state"])
def test_every_column_role_reaches_the_forecast(model_class, role):
    dataset = make_dataset()
    model, (x, _) = build(model_class, dataset), one_batch(dataset)
    before = model(x)["prediction"]
    changed = {k: v.clone() for k, v in x.items()}
    if role == "encoder_target":
        changed["encoder_target"] *= 2
    elif role in dataset.reals:
        changed["encoder_cont"][..., dataset.reals.index(role)] += 1
    else:
        column = dataset.flat_categoricals.index(role)
        size = len(dataset._categorical_encoders[role].classes_)
        changed["encoder_cat"][..., column] = (x["encoder_cat"][..., column] + 1) % size
    assert (model(changed)["prediction"] - before).abs().amax((1, 2)).min() > 0


@MODELS
def test_levels_and_scales_of_very_different_series_are_learned(model_class):
    time = np.arange(60)
    level = {"a0": 1.0, "a1": 1e3, "a2": 1e5}
    frames = [
        pd.DataFrame({"agency": name, "sku": "s", "time_idx": time, "y": size * (3 + np.sin(2 * np.pi * time / 6))})
        for name, size in level.items()
    ]
    data = pd.concat(frames, ignore_index=True)
    training = TimeSeriesDataSet(
        data[data["time_idx"] < 54],
        time_idx="time_idx",
        target="y",
        group_ids=["agency", "sku"],
        max_encoder_length=24,
        max_prediction_length=6,
        time_varying_unknown_reals=["y"],
        target_normalizer=None,  # all scaling is the model's own
    )
    model = build(model_class, training, loss=MAE(), learning_rate=3e-3)
    fit(model, training, steps=60)
    last = TimeSeriesDataSet.from_dataset(training, data, predict=True)
    found = model.predict(last, return_index=True)
    for row, name in enumerate(found.index["agency"]):
        wanted = data[(data["agency"] == name) & (data["time_idx"] >= 54)]["y"].to_numpy()
        assert np.abs(found.output[row].numpy() - wanted).max() < 0.2 * level[name]


def test_a_known_driver_is_learned_better_than_the_baseline():
    data = panel(steps=80)
    data["volume"] = 10 + 5 * data["discount"]
    training = make_dataset(data[data["time_idx"] < 76])
    model = build(XLSTM, training, loss=QuantileLoss(), learning_rate=1e-2)
    fit(model, accelerate(training), steps=150)
    last = TimeSeriesDataSet.from_dataset(training, data, predict=True)
    loader = last.to_dataloader(train=False, batch_size=8)
    ours, theirs = (m.predict(loader, return_y=True, trainer_kwargs=QUIET) for m in (model, Baseline()))
    assert MAE()(ours.output, ours.y) < 0.5 * MAE()(theirs.output, theirs.y)


@MODELS
def test_quantiles_never_cross_and_come_in_the_order_of_the_loss(model_class):
    dataset = make_dataset(target_normalizer=GroupNormalizer(groups=["agency", "sku"]))
    loss = QuantileLoss(quantiles=[0.9, 0.1, 0.5])
    model, (x, _) = build(model_class, dataset, loss=loss, learning_rate=0.1), one_batch(dataset)
    fit(model, dataset, steps=3)
    high, low, middle = model.eval()(x)["prediction"].unbind(-1)
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert ((low < middle) & (middle < high)).float().mean() > 0.9


def test_a_quantile_loss_without_the_median_gives_its_interpolation():
    dataset = make_dataset()
    model = build(XLSTM, dataset, loss=QuantileLoss(quantiles=[0.1, 0.4, 0.6, 0.9]))
    low, high = model.predict(dataset, mode="quantiles").unbind(-1)[1:3]
    middle = model.predict(dataset)
    seen = middle.isfinite()
    assert ((low <= middle) & (middle <= high))[seen].all()
    torch.testing.assert_close(middle[seen], (low + high)[seen] / 2)


# --- losses, targets, normalizers ---


LOSSES = {
    "mae": (MAE(), GroupNormalizer(groups=["agency", "sku"])),
    "smape": (SMAPE(), "auto"),
    "rmse": (RMSE(), TorchNormalizer(method="robust")),
    "sum": (SMAPE() + MAE() * 1e-3, EncoderNormalizer(transformation="log")),
    "poisson": (PoissonLoss(), EncoderNormalizer(transformation={"forward": torch.log1p})),
    "normal": (NormalDistributionLoss(), GroupNormalizer(transformation="log1p")),
    "lognormal": (LogNormalDistributionLoss(), EncoderNormalizer(transformation="log1p")),
    "negative binomial": (NegativeBinomialDistributionLoss(), EncoderNormalizer(center=False)),
    "quantile": (QuantileLoss(), None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_training_on_a_loss_lowers_it(name):
    loss, normalizer = LOSSES[name]
    data = panel()
    data["volume"] = data["volume"].round() + 1.0
    dataset = make_dataset(data, target_normalizer=normalizer, add_target_scales=False)
    model = build(XLSTM, dataset, loss=loss, learning_rate=3e-3)
    batches = [one_batch(dataset, start=s) for s in range(3)]

    def value():
        with torch.no_grad():
            return float(sum(model.loss(model(x)["prediction"], y) for x, y in packed(batches)))

    before = value()
    fit(model, dataset, steps=15)
    model.eval()
    assert np.isfinite(before)
    assert value() < before


def packed(batches):
    """As `step` does: targets of different lengths packed."""
    for x, y in batches:
        lengths = x["decoder_lengths"]
        pack = torch.nn.utils.rnn.pack_padded_sequence(y[0], lengths, batch_first=True, enforce_sorted=False)
        yield x, (pack, y[1])


def multi_target():
    names = ["volume", "stock"]
    normalizers = MultiNormalizer([GroupNormalizer(groups=["agency"], transformation="log1p"), EncoderNormalizer()])
    return make_dataset(target=names, target_normalizer=normalizers)


@MODELS
def test_several_targets_train_with_a_loss_each_and_none_of_them_is_shared(model_class):
    dataset = multi_target()
    model = build(model_class, dataset, loss=MultiLoss([QuantileLoss([0.1, 0.5, 0.9]), NormalDistributionLoss()]))
    fit(model, dataset)
    x, _ = one_batch(dataset)
    first, second = model.eval()(x)["prediction"]
    assert first.shape[-1] == 3
    assert second.shape[-1] == 4  # centre, scale and the two parameters
    points = model.predict(dataset, mode="prediction")
    assert len(points) == 2
    copies = build(model_class, dataset, loss=NormalDistributionLoss()).loss.metrics
    assert copies[0] is not copies[1]


def test_a_target_that_is_no_input_column_is_forecast_from_its_history():
    dataset = make_dataset(time_varying_unknown_reals=[], target_normalizer=TorchNormalizer(), add_target_scales=False)
    model, (x, _) = build(XLSTM, dataset), one_batch(dataset)
    changed = {**x, "encoder_target": x["encoder_target"] * 2}
    assert (model(changed)["prediction"] - model(x)["prediction"]).abs().min() > 0


def test_columns_kept_from_the_encoder_are_not_read_there():
    dataset = make_dataset()
    model = build(XLSTM, dataset, allowed_encoder_known_variable_names=["time_idx", "relative_time_idx", "month"])
    x, _ = one_batch(dataset)
    changed = {**x, "encoder_cont": x["encoder_cont"].clone()}
    changed["encoder_cont"][..., dataset.reals.index("discount")] += 5
    torch.testing.assert_close(model(changed)["prediction"], model(x)["prediction"], rtol=0, atol=0)


def test_groups_of_categories_lags_and_unseen_categories_are_taken():
    data = panel()
    data["fair"] = np.where(data["time_idx"] % 7 == 0, "fair", "-")
    data["strike"] = np.where(data["time_idx"] % 11 == 0, "strike", "-")
    dataset = make_dataset(
        data,
        time_varying_known_categoricals=["month", "events"],
        variable_groups={"events": ["fair", "strike"]},
        lags={"volume": [1, 6]},
        categorical_encoders={"agency": NaNLabelEncoder(add_nan=True)},
    )
    model, (x, _) = build(XLSTM, dataset), one_batch(dataset)
    changed = {**x, "decoder_cat": x["decoder_cat"].clone()}
    column = dataset.flat_categoricals.index("strike")
    changed["decoder_cat"][..., column] = 1 - (x["decoder_cat"][..., column] > 0).long()
    assert (model(changed)["prediction"] - model(x)["prediction"]).abs().amax((1, 2)).min() > 0
    new = panel(series=1, seed=5).assign(agency="new", fair="-", strike="-")
    assert model.predict(new).isfinite().all()


# --- their tools around the model ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model after training with every tool attached: (model, data set, trainer, folder)."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset()
    model = build(XLSTM, dataset, log_interval=1, logging_metrics=[SMAPE(), MAE()], learning_rate=[1e-2, 1e-3])
    validation = dataset.to_dataloader(train=False, batch_size=16)
    best = ModelCheckpoint(folder, monitor="val_loss")
    options = {"logger": TensorBoardLogger(folder), "callbacks": [best], "enable_checkpointing": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = {"max_steps": -1, "max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
        runner = fit(model, dataset, validation=validation, **shape, **options)
    return model.eval(), dataset, runner, folder


def test_checkpoints_of_their_trainer_load_with_the_same_forecasts(trained):
    model, dataset, runner, _ = trained
    again = XLSTM.load_from_checkpoint(runner.checkpoint_callback.best_model_path)
    torch.testing.assert_close(
        again.predict(dataset, mode="quantiles"), model.predict(dataset, mode="quantiles"), equal_nan=True
    )
    assert again.hparams.hidden_size == 16
    assert again.dataset_parameters["max_encoder_length"] == 10


def test_figures_of_forecasts_are_logged(trained):
    _, _, _, folder = trained
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = next(folder.rglob("events.out*")).parent
    events = EventAccumulator(str(run)).Reload()
    assert any("prediction" in tag for tag in events.Tags()["images"])
    assert {"val_SMAPE", "val_MAE", "val_loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("options", [None, QUIET], ids=["direct", "trainer"])
@pytest.mark.parametrize("mode", ["prediction", "quantiles", "raw", ("raw", "prediction")])
def test_predict_returns_what_their_own_predict_does(trained, mode, options):
    model, dataset, _, _ = trained
    returns = {f"return_{name}": True for name in ("index", "x", "y", "decoder_lengths")}
    given = dict(options) if options else None
    found = model.predict(dataset, mode=mode, batch_size=32, trainer_kwargs=given, **returns)
    value = found.output.prediction if mode == "raw" else found.output
    steps = found.x["decoder_cont"].shape[1]
    assert value.shape[:2] == (len(dataset), steps)
    assert len(found.index) == len(dataset) == len(found.decoder_lengths)
    torch.testing.assert_close(found.y[0].nan_to_num(), found.x["decoder_target"].nan_to_num())
    if mode in ("prediction", "quantiles"):
        beyond = torch.arange(steps) >= found.decoder_lengths[:, None]
        assert value[beyond].isnan().all()
        assert value[~beyond].isfinite().all()
    if options:
        direct = model.predict(dataset, mode=mode, batch_size=32)
        direct = direct.prediction if mode == "raw" else direct
        torch.testing.assert_close(value, direct, equal_nan=True)
        assert given == options  # the caller's dictionary is as it was


def test_predict_keeps_callbacks_and_writes_nothing_where_it_runs(trained, tmp_path, monkeypatch):
    model, dataset, _, _ = trained
    seen = []

    class Count(Callback):
        def on_predict_batch_end(self, *args, **kwargs):
            seen.append(1)

    monkeypatch.chdir(tmp_path)
    options = {"accelerator": "cpu", "callbacks": [Count()]}
    first = model.predict(dataset, trainer_kwargs=options)
    second = model.predict(dataset, trainer_kwargs=options)
    torch.testing.assert_close(first, second, equal_nan=True)
    assert list(options) == ["accelerator", "callbacks"]
    assert len(options["callbacks"]) == 1
    assert len(seen) == 2 * -(-len(dataset) // 64)
    model.predict(dataset)
    assert os.listdir(tmp_path) == []


def test_predict_takes_frames_loaders_and_the_fast_loader(trained):
    model, dataset, _, _ = trained
    data = panel()
    last = TimeSeriesDataSet.from_dataset(dataset, data, predict=True)
    expected = model.predict(last)
    torch.testing.assert_close(model.predict(data), expected)
    torch.testing.assert_close(model.predict(last.to_dataloader(train=False, batch_size=3)), expected)
    torch.testing.assert_close(model.predict(accelerate(last)), expected)


FRAMES = {
    "group": {"weight": "weight"},
    "encoder": {"target_normalizer": EncoderNormalizer(transformation="softplus")},
    "robust": {"target_normalizer": TorchNormalizer(method="robust", transformation="log1p")},
    "several": {
        "target": ["volume", "stock"],
        "target_normalizer": MultiNormalizer([GroupNormalizer(groups=["sku"]), EncoderNormalizer()]),
    },
    "no reals": {"static_reals": [], "time_varying_known_reals": [], "target_normalizer": TorchNormalizer()},
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_after_the_first_are_read_as_theirs_reads_them(name):
    data = panel(steps=60).assign(weight=lambda x: 1 + x["discount"])
    dataset = make_dataset(data[data["time_idx"] < 50], **FRAMES[name])
    model = build(XLSTM, dataset)
    model.predict(data)
    later = panel(steps=60, seed=3).assign(weight=lambda x: 1 + x["stock"]).sample(frac=1, random_state=0)
    later["volume"] += 1.0
    if name != "group" and name != "several":  # whose normalizer does not know the new series
        later["sku"] = later["sku"].replace("s1", "other")
    kept = later.copy()
    ours = model.__dict__["_frame_reader"][1](later)
    assert ours is not None
    pd.testing.assert_frame_equal(later, kept)
    theirs = TimeSeriesDataSet.from_parameters(dataset.get_parameters(), later, predict=True)
    batches = [next(iter(ds.to_dataloader(train=False, batch_size=9))) for ds in (ours, theirs)]
    (x, y), (wanted_x, wanted_y) = batches
    assert x.keys() == wanted_x.keys()
    for key, value in wanted_x.items():
        torch.testing.assert_close(x[key], value)
    torch.testing.assert_close(y[0], wanted_y[0])
    if name == "group":
        torch.testing.assert_close(y[1], wanted_y[1])
    found = model.predict(later, return_index=True)
    pd.testing.assert_frame_equal(found.index, theirs.x_to_index(wanted_x))


def test_frames_that_are_not_plain_are_left_to_theirs():
    data = panel(steps=40)
    model = build(XLSTM, make_dataset(data))
    expected = model.predict(data)
    reader = model.__dict__["_frame_reader"][1]
    gap = data[data["time_idx"] != 35]
    bad = {
        "gap": gap,
        "unseen": data.assign(month="13th"),
        "missing column": data.drop(columns="discount"),
        "missing value": data.assign(stock=np.nan),
        "short": data[data["time_idx"] < 6],
    }
    for frame in bad.values():
        assert reader(frame) is None
    for error, frame in ((AssertionError, gap), (KeyError, bad["unseen"]), (KeyError, bad["missing column"])):
        with pytest.raises(error):
            model.predict(frame)
    torch.testing.assert_close(model.predict(data), expected)


def test_plots_dependencies_and_the_learning_rate_finder_work(trained, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    model, dataset, _, _ = trained
    raw = model.predict(dataset, mode="raw", return_x=True)
    figure = model.plot_prediction(raw.x, raw.output, idx=3, add_loss_to_title=SMAPE())
    assert len(figure.axes[0].lines) >= 3
    means = model.calculate_prediction_actual_by_variable(dict(raw.x.items()), model.to_prediction(raw.output))
    assert set(model.plot_prediction_actual_by_variable(means)) >= {"discount", "month"}
    plt.close("all")
    dependency = model.predict_dependency(dataset, "discount", [0.0, 1.0], mode="series")
    assert dependency.index.tolist() == [0.0, 1.0]
    fresh = build(XLSTM, dataset)
    runner = pl.Trainer(**{**QUIET, "default_root_dir": tmp_path, "max_epochs": 1})
    loader = dataset.to_dataloader(train=True, batch_size=16)
    found = Tuner(runner).lr_find(fresh, train_dataloaders=loader, num_training=8, min_lr=1e-4, max_lr=1e-1)
    assert len(found.results["lr"]) >= 6


# --- what cannot work is refused when the model is built ---


def categorical_target():
    data = panel()
    data["volume"] = data["volume"].astype(int)
    return make_dataset(data, target_normalizer="auto", add_target_scales=False, time_varying_unknown_reals=["stock"])


def without_reals():
    return make_dataset(
        static_reals=[],
        time_varying_known_reals=[],
        time_varying_unknown_reals=[],
        add_relative_time_idx=False,
        add_target_scales=False,
        add_encoder_length=False,
    )


REFUSED = {
    "min_encoder_length": (lambda: make_dataset(min_encoder_length=0), {}),
    "time_varying_unknown_reals": (without_reals, {}),
    "loss": (multi_target, {"loss": MultiLoss([MAE(), MAE(), MAE()])}),
    "single target": (make_dataset, {"loss": MultiLoss([MAE()])}),
    "volume": (categorical_target, {}),
    "CrossEntropy": (make_dataset, {"loss": CrossEntropy()}),
    "center=False": (make_dataset, {"loss": NegativeBinomialDistributionLoss()}),
    "logit": (make_dataset, {"loss": BetaDistributionLoss()}),
    "quantiles": (make_dataset, {"loss": QuantileLoss(quantiles=[0.1, 50])}),
    "output_size": (make_dataset, {"output_size": 5}),
    "monotone_constraints": (make_dataset, {"monotone_constraints": {"discount": 1}}),
    "num_heads": (make_dataset, {"num_heads": 3}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_when_the_model_is_built(name):
    make, options = REFUSED[name]
    with pytest.raises(ValueError, match=name):
        build(XLSTM, make(), **options)


def test_a_longer_horizon_than_the_model_was_built_for_is_refused():
    model = build(XLSTM, make_dataset())
    x, _ = one_batch(make_dataset(max_prediction_length=6))
    with pytest.raises(ValueError, match="prediction_length=4"):
        model(x)


def test_building_changes_none_of_the_callers_dictionaries():
    dataset = make_dataset()
    options: dict[str, dict] = {"embedding_sizes": {"month": (12, 3)}, "optimizer_params": {"eps": 1e-6}}
    copies = {k: dict(v) for k, v in options.items()}
    model = build(XLSTM, dataset, **options)
    assert options == copies
    assert model.hparams.optimizer_params is not options["optimizer_params"]
    assert model.hparams.embedding_sizes["month"] == (12, 3)
    assert model.reader.embeddings["agency"].num_embeddings == 2
