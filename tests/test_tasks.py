"""What holds for every task, on small data in its own layout; and the networks, losses and data of each."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import RECORDS, put_cifar10, put_images
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from toy import PLAN, assert_same_run

import hyperstack as hs
from hyperstack.tasks import TASKS, CIFAR10ResNet18, SpiralCompletion, Supersample, SupersampleQuartic, cifar10, mnist
from hyperstack.tasks.images import Channels, cropped, cut_off, flipped, grey
from hyperstack.tasks.resnet import resnet18
from hyperstack.tasks.spiral_completion import Convolution, Generator, spiral
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.training import Trainer, train

CPU = torch.device("cpu")
LARGE = {"cifar10-resnet18", "imagefolder", "supersample", "supersample-quartic"}  # networks of a second a step

each_task = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in TASKS]
)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Makes a task with its small data."""

    def load(name, device=CPU):
        task = TASKS[name]()
        if name == "imagefolder":
            pytest.importorskip("PIL", reason="needs Pillow, of the extra `images`")
            return task, task.load(put_images(tmp_path / f"images-{device.type}"), device)
        if name.startswith("mnist"):
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (30, 28, 28), dtype=np.uint8)
            labels = random.integers(0, 10, 30, dtype=np.uint8)
            monkeypatch.setattr(mnist, "load_arrays", lambda *arguments: (images, labels, images[:9], labels[:9]))
            return task, task.load(None, device)
        monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
        return task, task.load(put_cifar10(tmp_path / f"cifar10-{device.type}"), device)

    return load


def batch(task, data, training=True, count=4, seed=0):
    draw = torch.Generator(data.train_inputs.device).manual_seed(seed)
    return task.prepare(data.train_inputs[:count], data.train_targets[:count], draw, training=training)


# ---- every task


def test_names_and_summaries_fit_the_help():
    for name, task in TASKS.items():
        assert name == task.name == name.lower()
        assert "\n" not in task.summary
        assert task.__doc__
        assert not hs.parse(task.stack).free_names


@each_task
def test_losses_and_errors_are_one_an_example(loaded, name):
    torch.manual_seed(0)
    task, data = loaded(name)
    model = task.model()
    for training in (True, False):
        inputs, targets = batch(task, data, training)
        assert inputs.dtype == torch.float32
        model.train(training)
        with torch.no_grad():
            outputs = model(inputs)
            losses, errors = task.losses(outputs, targets), task.error(outputs, targets)
            assert losses.shape == errors.shape == (4,)
            assert losses.dtype == errors.dtype == torch.float32
            assert ((errors >= 0) & (errors <= 1)).all()
            wrong = task.error(torch.full_like(outputs, torch.nan), targets)
        assert ((wrong >= 0) & (wrong <= 1)).all()
        assert torch.isfinite(losses).all()
    with torch.no_grad():  # each example by itself: none looks at another
        one = task.losses(outputs[2:3], targets[2:3])
    torch.testing.assert_close(one, losses[2:3])


@each_task
def test_the_model_follows_the_global_generator(loaded, name):
    task, _ = loaded(name)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(parameters_to_vector(task.model().parameters()))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@each_task
def test_batches_are_a_function_of_the_generator_and_leave_the_data_alone(loaded, name):
    task, data = loaded(name)
    before = [x.clone() for x in (data.train_inputs, data.train_targets)]
    first, again, other = (batch(task, data, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    random = name in {"supersample", "supersample-quartic", "spiral-completion", "imagefolder"}
    assert torch.equal(first[0], other[0]) is not random
    assert all(torch.equal(a, b) for a, b in zip(before, (data.train_inputs, data.train_targets), strict=True))


@pytest.mark.sampled(4)
@each_task
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, loaded, name):
    """Also in the middle of an epoch, where augmentation has drawn already."""
    task, data = loaded(name)
    data = replace(data, train_inputs=data.train_inputs[:8], train_targets=data.train_targets[:8])
    plan = replace(PLAN, task=name, stack=task.stack, epochs=2, batch_size=3)
    train(plan, task, data, RunFolder.create(tmp_path / "straight"))
    stops = iter([False, False, True])
    stopped = train(plan, task, data, RunFolder.create(tmp_path / "run"), stop=lambda: next(stops))
    assert (stopped["steps"], stopped["finished"]) == (2, False)
    torch.manual_seed(1234)
    train(plan, task, data, RunFolder(tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["diverged"]) == (6, False)
    assert 0 <= summary["test_error"] <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", TASKS)
def test_on_a_gpu_batches_are_made_there_and_are_the_same(loaded, name):
    (task, data), (other, same) = loaded(name), loaded(name, torch.device("cuda"))
    for training in (True, False):
        found = batch(other, same, training)
        assert all(x.device.type == "cuda" for x in found)
        losses = other.losses(other.model().cuda()(found[0]), found[1])
        assert losses.shape == (4,)
        assert torch.isfinite(losses).all()
    # The noise of a scan is drawn on the device, which draws otherwise.
    first = 1 if name == "spiral-completion" else 0
    for a, b in list(zip(batch(task, data, training=False), found, strict=True))[first:]:
        torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_loop_draws_anew_for_each_batch_and_the_same_in_each_test(loaded, monkeypatch):
    task, data = loaded("spiral-completion")
    seen = []

    def prepare(inputs, targets, draw, training):
        seen.append((training, torch.rand(1, generator=draw).item()))
        return SpiralCompletion.prepare(task, inputs, targets, draw, training)

    monkeypatch.setattr(task, "prepare", prepare)
    monkeypatch.setattr(SpiralCompletion, "test_batch_size", 5)
    plan = replace(PLAN, task=task.name, epochs=2, batch_size=30)
    errors = []
    for _ in range(2):
        trainer = Trainer(plan, task, data)
        for _ in range(2):
            for chosen in trainer.source.order(trainer.plan.seed, trainer.epoch).split(30):
                trainer._step(chosen)
            errors.append(trainer.test_error())
            trainer.epoch, trainer.batch = trainer.epoch + 1, 0
    drawn = [value for training, value in seen if training]
    tested = [value for training, value in seen if not training]
    assert drawn[:4] == drawn[4:]
    assert len(set(drawn)) == 4
    assert tested[:3] * 4 == tested
    assert len(set(tested)) == 3
    assert errors[:2] == errors[2:]


# ---- parts


def test_channels_of_unequal_images():
    images = torch.randint(256, (7, 3, 5, 4), dtype=torch.uint8)
    images[:, 1] = 9
    channels = Channels.of(images)
    numbers = images.double()
    torch.testing.assert_close(channels.mean.flatten().double(), numbers.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    expected = numbers.std(dim=(0, 2, 3), correction=0)
    expected[1] = 1
    torch.testing.assert_close(channels.deviation.flatten().double(), expected, rtol=1e-6, atol=0)


def test_flips_and_crops_move_whole_images():
    """Each is one of the two, or one of the (2 margin + 1)² shifts, and all of these come up."""
    images = torch.arange(1, 2 * 5 * 6 + 1.0).view(1, 2, 5, 6).expand(400, -1, -1, -1)
    draw = torch.Generator().manual_seed(0)
    turned = flipped(images, draw)
    same = (turned == images).all(dim=(1, 2, 3))
    mirrored = (turned == torch.from_numpy(images.numpy()[..., ::-1].copy())).all(dim=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250
    moved = cropped(images, 1, draw)
    padded = np.pad(images[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    shifts = [torch.from_numpy(padded[:, y : y + 5, x : x + 6]) for y in range(3) for x in range(3)]
    counts = [int((moved == shift).all(dim=(1, 2, 3)).sum()) for shift in shifts]
    assert sum(counts) == 400
    assert min(counts) > 20


def test_grey_is_luma():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]], np.uint8)
    assert grey(colours[:, :, None, None]).flatten().tolist() == [76, 150, 29, 255, 18]
    assert grey(colours[:, :, None, None]).shape == (5, 1, 1, 1)


def test_errors_are_cut_off():
    errors = torch.tensor([0.0, 0.5, 3.0, torch.inf, torch.nan])
    assert cut_off(errors).tolist() == [0, 0.5, 1, 1, 1]


# ---- networks


def test_resnet18_has_its_known_size():
    model = CIFAR10ResNet18().model()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert len([m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]) == 20
    with torch.no_grad():
        features = model[:-3].eval()(torch.randn(1, 3, 32, 32))
    assert features.shape == (1, 512, 4, 4)
    assert resnet18(7)[-1].out_features == 7


def test_mnist_networks():
    relu, conv = TASKS["mnist-relu"]().model(), TASKS["mnist-conv"]().model()
    a, b, c, d = relu.parameters()
    x = torch.rand(5, 784)
    expected = torch.log_softmax((x @ a.T + b).clamp(min=0) @ c.T + d, 1)
    torch.testing.assert_close(relu(x), expected)
    a, b, c, d, e, f = conv.parameters()
    y = functional.conv2d(x.view(5, 1, 28, 28), a, b, stride=2, padding=1).clamp(min=0)
    y = functional.conv2d(y, c, d, stride=2, padding=1).clamp(min=0)
    torch.testing.assert_close(conv(x), torch.log_softmax(y.flatten(1) @ e.T + f, 1))
    assert sum(p.numel() for p in conv.parameters()) == 160 + 4640 + 15690


# ---- supersampling


def test_supersample_data(loaded):
    """Targets are standardized; inputs are every second point between their corners, by an interpolation of our own."""
    task, data = loaded("supersample")
    assert data.train_inputs is data.train_targets, "an image that is its own target is held once"
    for training in (True, False):
        small, images = batch(task, data, training, count=6)
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
        torch.testing.assert_close(images.var(dim=(1, 2, 3), correction=0), torch.ones(6), rtol=1e-5, atol=0)
        places = np.arange(16) * 31 / 15
        low, part = np.minimum(places.astype(int), 30), places - np.minimum(places.astype(int), 30)
        x = images.double().numpy()
        x = x[:, :, low] * (1 - part)[:, None] + x[:, :, low + 1] * part[:, None]
        x = x[..., low] * (1 - part) + x[..., low + 1] * part
        np.testing.assert_allclose(small.double().numpy(), x, atol=1e-5)
    plain = data.train_inputs[:6].double()
    plain = (plain - plain.mean(dim=(1, 2, 3), keepdim=True)) / plain.std(dim=(1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(images.double(), plain, rtol=1e-5, atol=1e-5)


def test_contrast_scales_each_channel_about_its_mean(loaded):
    """Undone by standardizing within the channel; the share of a channel's own mean in the whole goes 0.2 to 1.8."""
    task, data = loaded("supersample")
    image = data.train_inputs[:1].expand(300, -1, -1, -1)
    _, changed = task.prepare(image, image, torch.Generator().manual_seed(0), training=True)

    def within(x):
        return (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True)

    plain = within(image[:1].float())
    turned = (within(changed) - plain).abs().amax(dim=(1, 2, 3)) > 1e-2
    straight = torch.where(turned[:, None, None, None], changed.flip(3), changed)
    torch.testing.assert_close(within(straight), plain.expand(300, -1, -1, -1), rtol=1e-3, atol=1e-3)
    assert 100 < turned.sum() < 200
    # Between the channels: the deviation of their means over the mean deviation within one goes with 1 / factor.
    spread = changed.mean(dim=(2, 3)).std(1) / changed.std(dim=(2, 3)).mean(1)
    original = image[:1].float()
    factors = original.mean(dim=(2, 3)).std(1) / original.std(dim=(2, 3)).mean(1) / spread
    assert factors.min() == pytest.approx(0.2, abs=0.05)
    assert factors.max() == pytest.approx(1.8, abs=0.05)
    assert factors.mean() == pytest.approx(1.0, abs=0.1)


def test_an_image_of_one_colour_is_no_division_by_zero():
    task, images = Supersample(), torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    for training in (True, False):
        small, whole = task.prepare(images, images, torch.Generator(), training=training)
        assert torch.equal(whole, torch.zeros(2, 3, 32, 32))
        assert torch.equal(small, torch.zeros(2, 3, 16, 16))


def test_supersample_network():
    """The skips are around two convolutions each; every layer but the last has ReLU."""
    torch.manual_seed(0)
    model = Supersample().model()
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 4]
    body = [(128, 128, 3, 3)] * 6
    assert shapes == [(64, 3, 5, 5), (128, 64, 3, 3), *body, (64, 128, 3, 3), (3, 64, 5, 5)]
    for p in model.parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.zeros_like(p))
        else:
            bound = (6 / ((p.shape[0] + p.shape[1]) * p.shape[2] * p.shape[3])) ** 0.5
            assert 0.98 * bound < p.abs().max() <= bound
    weights = list(model.parameters())
    x = torch.randn(1, 3, 16, 16)

    def layer(i, x, active=True):
        w, b = weights[2 * i : 2 * i + 2]
        y = functional.conv2d(x, w, b, padding=w.shape[2] // 2)
        return y.clamp(min=0) if active else y

    with torch.no_grad():
        y = functional.interpolate(x, (32, 32), mode="bilinear", align_corners=True)
        y = layer(1, layer(0, y))
        for i in (2, 4, 6):
            y = y + layer(i + 1, layer(i, y))
        y = layer(9, layer(8, y), active=False)
        torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


def test_supersample_losses():
    outputs, targets = torch.randn(2, 3, 32, 32).double(), torch.randn(2, 3, 32, 32).double()
    difference = (outputs - targets).numpy()
    squared, quartic = Supersample().losses(outputs, targets), SupersampleQuartic().losses(outputs, targets)
    np.testing.assert_allclose(squared.numpy(), (difference**2).reshape(2, -1).mean(1), rtol=1e-12)
    np.testing.assert_allclose(quartic.numpy(), (difference**4).reshape(2, -1).mean(1), rtol=1e-12)
    assert torch.equal(Supersample().error(0.9 * targets, targets), SupersampleQuartic().error(0.9 * targets, targets))
    torch.testing.assert_close(Supersample().error(0.9 * targets, targets), 0.01 * targets.square().mean((1, 2, 3)))


# ---- spiral completion


@pytest.mark.parametrize(("side", "coverage"), [(32, 1 / 20), (64, 1 / 20), (64, 1 / 5), (48, 1 / 40)])
def test_a_spiral_is_a_path_outward_of_the_pixels_asked_for(side, coverage):
    scanned = spiral(side, coverage)
    assert scanned.shape == (side, side)
    assert scanned.sum() == round(coverage * side * side)
    middle = side // 2
    assert scanned[middle - 1 : middle + 1, middle - 1 : middle + 1].any()
    places = scanned.nonzero().double() + 0.5 - side / 2
    assert places.abs().amax() >= side / 2 - 1, "it should reach the edge"
    distance = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert (distance.amin(1) <= 1.5).double().mean() > 0.97, "pixels of a path touch"
    # Everything near the middle lies within a turn of the path.
    inside = torch.cartesian_prod(*[torch.arange(0.5 - side / 4, side / 4)] * 2).double()
    assert torch.cdist(inside, places).amin(1).max() < 1.3 / coverage


def test_scans_show_noisy_pixels_of_the_blurred_image_along_the_spiral(loaded):
    task, data = loaded("spiral-completion")
    assert data.train_inputs.shape[1:] == (1, 32, 32)
    scans, images = batch(task, data, training=False, count=40)
    padded = np.pad(data.train_inputs[:40, 0].double().numpy() / 127.5 - 1, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    blurred = sum(weights[i, j] * padded[:, i : i + 32, j : j + 32] for i, j in np.ndindex(3, 3))
    np.testing.assert_allclose(images[:, 0].double().numpy(), blurred, atol=1e-6)
    hidden = ~task.scanned
    assert torch.equal(scans[:, 0, hidden], torch.zeros(40, int(hidden.sum())))
    noise = (scans - images)[:, 0, task.scanned]
    assert noise.numel() == 40 * 51
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(0.1, rel=0.1)


def test_scanned_images_are_turned_in_eight_ways(loaded):
    task, data = loaded("spiral-completion")
    image = data.train_inputs[:1].expand(400, -1, -1, -1)
    draw = torch.Generator().manual_seed(0)
    _, plain = task.prepare(image[:1], image[:1], draw, training=False)
    _, turned = task.prepare(image, image, draw, training=True)
    square = plain[0, 0].numpy()
    ways = [np.rot90(x, k).copy() for x in (square, square[:, ::-1]) for k in range(4)]
    counts = [int(np.isclose(turned[:, 0].numpy(), way, atol=1e-6).all(axis=(1, 2)).sum()) for way in ways]
    assert sum(counts) == 400
    assert min(counts) > 25


def test_filters_have_the_length_they_are_given_and_channels_no_mean():
    torch.manual_seed(0)
    layer, x = Convolution(3, 5).double(), torch.randn(4, 3, 8, 8).double()
    torch.testing.assert_close(layer.length.detach(), torch.full_like(layer.length, 2**0.5), rtol=1e-7, atol=0)
    assert layer.direction.detach().std() == pytest.approx(0.05, rel=0.2)
    long = layer.length.detach().flatten() / layer.direction.detach().flatten(1).norm(dim=1)
    filters = layer.direction.detach() * long[:, None, None, None]
    plain = functional.conv2d(x, filters, padding=1)
    mean = plain.mean(dim=(0, 2, 3))
    torch.testing.assert_close(layer(x), (plain - mean[:, None, None]).clamp(min=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.mean, 0.01 * mean, rtol=1e-6, atol=0)
    layer(x)
    torch.testing.assert_close(layer.mean, 0.0199 * mean, rtol=1e-6, atol=0)
    tracked = layer.mean.clone()
    torch.testing.assert_close(layer.eval()(x), (plain - tracked[:, None, None]).clamp(min=0))
    assert torch.equal(layer.mean, tracked), "testing changes nothing"
    last = Convolution(3, 5, last=True)
    assert {name for name, _ in last.named_buffers()} == set()


def test_both_completions_are_judged_and_both_train_the_inner_generator():
    torch.manual_seed(0)
    task, model = SpiralCompletion(), Generator()
    targets = torch.rand(2, 1, 32, 32)
    small = targets.view(2, 16, 2, 16, 2).mean(dim=(2, 4))
    right = torch.cat([targets.flatten(1), small.flatten(1)], 1)
    assert model(targets).shape == right.shape
    torch.testing.assert_close(task.losses(right, targets), torch.zeros(2))
    off = right + torch.cat([torch.full((2, 1024), 0.1), torch.full((2, 256), 0.2)], 1)
    torch.testing.assert_close(task.losses(off, targets), torch.full((2,), 200 * (0.01 + 0.04)))
    torch.testing.assert_close(task.error(off, targets), torch.full((2,), 0.0025))
    for part in (slice(0, 1024), slice(1024, None)):
        model.zero_grad()
        model(targets)[:, part].square().sum().backward()
        assert model.inner[0].direction.grad.abs().sum() > 0
        assert model.outer[0].direction.grad.any() == (part.start == 0)
        assert model.auxiliary[0].direction.grad.any() == (part.start != 0)


def test_other_image_sizes(tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow, of the extra `images`")
    task = SpiralCompletion()
    data = task.load(put_images(tmp_path), CPU)
    scans, images = batch(task, data)
    assert scans.shape == images.shape == (4, 1, 64, 64)
    assert (scans != 0).sum() == 4 * 205
    outputs = task.model()(scans)
    assert task.losses(outputs, images).shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-resnet18", "spiral-completion", "supersample", "supersample-quartic"])
def test_a_few_steps_fit_a_batch(name):
    """Adam on one batch of smooth images, whose details can be guessed: the loss falls to less than half."""
    torch.manual_seed(0)
    task = TASKS[name]()
    coarse = torch.randint(256, (4, 1 if name == "spiral-completion" else 3, 4, 4), dtype=torch.uint8)
    images = functional.interpolate(coarse, (32, 32), mode="bilinear")
    task.channels, task.scanned = Channels.of(images), spiral(32, 1 / 20)
    labels = torch.arange(4) if name == "cifar10-resnet18" else images
    inputs, targets = task.prepare(images, labels, torch.Generator(), training=True)
    model = task.model()
    opt = torch.optim.Adam(model.parameters(), 3e-3 if name == "spiral-completion" else 1e-3)
    found = []
    for _ in range(40):
        opt.zero_grad()
        loss = task.losses(model(inputs), targets).mean()
        loss.backward()
        opt.step()
        found.append(loss.item())
    assert found[-1] < 0.5 * found[0]
