"""Samplers on Gaussians, whose probability flow is known in closed form, and AMED on a mixture of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gaussians import COVARIANCE, MEAN, Gaussian, Mixture
from safetensors.torch import save_file

from omniloom.models.unified.diffusion.amed import AmedPredictor, train_amed
from omniloom.models.unified.diffusion.config import FORMULATIONS, DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import NetworkDenoiser, sampling_times, velocity
from omniloom.models.unified.diffusion.samplers import SAMPLERS, amed_step, sample

PLAIN = [name for name in SAMPLERS if name != "amed"]
ORDERS = {"euler": 1, "heun": 2, "ddim": 1, "dpmpp_2m": 2}


def gaussian_noise(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize(("sampler", "order"), ORDERS.items())
def test_order_of_convergence(name: str, sampler: str, order: int) -> None:
    """Down to sigma = 0.05 on a grid even in ln sigma, where every variable's steps shrink alike."""
    config = DiffusionConfig(name, sampling_grid="logsnr", sigma_max=10.0, sigma_min=0.05)
    exact, errors = Gaussian(config), []
    for steps in (64, 128):
        times = sampling_times(config, steps + 1)[:-1]
        x = exact.scales(times[0])[1] * gaussian_noise()
        drawn = SAMPLERS[sampler](exact, x, times)
        errors.append((drawn - exact.solution(x, times[0], times[-1])).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] < (0.06 if order == 1 else 0.003)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_an_untrained_amed_is_the_midpoint_method(name: str) -> None:
    """r = 1/2, c = a = 1: order 2, with Heun's number of evaluations."""
    config = DiffusionConfig(name, sampling_grid="logsnr", sigma_max=10.0, sigma_min=0.05)
    exact, errors = Gaussian(config), []
    for steps in (64, 128):
        times = sampling_times(config, steps + 1)
        start = x = exact.scales(times[0])[1] * gaussian_noise()
        for (now, after), choice in zip(zip(times, times[1:]), AmedPredictor(times).steps(times)):
            assert choice == (0.5, 1.0, 1.0)
            x = amed_step(exact, x, now, after, *choice)
        errors.append((x - exact.solution(start, times[0], times[-2])).abs().max().item())
        exact.evaluations = 0
        sample("amed", exact, gaussian_noise(), times, AmedPredictor(times))
        assert exact.evaluations == 2 * (steps + 1) - 1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    assert errors[1] < 0.003


@pytest.mark.parametrize("name", ["flow", "vp"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("ddim", 1)])
def test_order_of_convergence_from_pure_noise_to_data(name: str, sampler: str, order: int) -> None:
    """The whole path, t = 1 to 0 in even steps."""
    config, errors = DiffusionConfig(name), []
    for steps in (64, 128):
        exact, times = Gaussian(config), sampling_times(config, steps)
        drawn = sample(sampler, exact, gaussian_noise(), times)
        errors.append((drawn - exact.solution(gaussian_noise(), 1.0, 0.0)).abs().max().item())
        assert exact.evaluations == (2 * steps - 1 if sampler == "heun" else steps)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] < (0.05 if order == 1 else 0.002)


class Linear:
    """A denoiser whose D is a line in half the log SNR, l = ln(a / b): D = at + slope l."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.scales = Gaussian(config).scales
        self.at, self.slope = torch.tensor([0.5, -2.0]).double(), torch.tensor([1.0, 0.3]).double()

    def line(self, half_log_snr: float) -> torch.Tensor:
        return self.at + self.slope * half_log_snr

    def denoised(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return self.line(self.half_log_snr(t))

    def half_log_snr(self, t: float) -> float:
        a, b = self.scales(t)
        return math.log(a) - math.log(b)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_dpmpp_2m_takes_a_line_at_the_middle_of_uneven_steps(name: str) -> None:
    """Where D is a line in ln(a / b), the extrapolation gives D in the middle of each step, however steps compare with
    those before; the first step has nothing to extrapolate from. In x / a, a step is a mean of x and D."""
    config = DiffusionConfig(name, sampling_grid="logsnr", sigma_max=10.0, sigma_min=0.05)
    even = sampling_times(config, 40)
    times, denoiser = [even[i] for i in (1, 4, 6, 17, 18, 30, 38)], Linear(config)
    start = torch.tensor([[3.0, -1.0], [0.2, 0.7]]).double()
    scaled = start / denoiser.scales(times[0])[0]
    for step, (now, after) in enumerate(zip(times, times[1:])):
        here, there = denoiser.half_log_snr(now), denoiser.half_log_snr(after)
        data = denoiser.line((here + there) / 2 if step else here)
        left = math.exp(here - there)  # of the noise
        scaled = left * scaled + (1 - left) * data
    drawn = SAMPLERS["dpmpp_2m"](denoiser, start, times)
    torch.testing.assert_close(drawn, denoiser.scales(times[-1])[0] * scaled, rtol=1e-9, atol=1e-9)
    # Into t = 0 a step is infinitely long: what is left is D where it starts.
    torch.testing.assert_close(
        SAMPLERS["dpmpp_2m"](denoiser, start, [*times, 0.0]),
        denoiser.denoised(start, times[-1]).expand(2, 2),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", FORMULATIONS)
def test_ddim_is_euler_wherever_the_path_is_straight(name: str) -> None:
    config = DiffusionConfig(name)
    exact, times = Gaussian(config), sampling_times(config, 12)
    drawn = [sample(sampler, exact, gaussian_noise(), times) for sampler in ("euler", "ddim")]
    if name == "vp":
        assert (drawn[0] - drawn[1]).abs().max() > 0.01
    else:
        torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sampler", PLAIN)
@pytest.mark.parametrize("predict", ["x", "v", "noise"])
def test_one_picture_comes_back_exactly(sampler: str, predict: str) -> None:
    """Of a single data point every step of a straight path is exact, whatever the network predicts."""
    point = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    config = DiffusionConfig(predict=predict, sampling_grid="edm", min_time=0.001, sigma_min=0.1)

    def network(x: torch.Tensor, t: float) -> torch.Tensor:
        noise = (x - (1 - t) * point) / t
        return {"x": point.expand_as(x), "noise": noise, "v": noise - point}[predict]

    drawn = sample(sampler, NetworkDenoiser(config, network), gaussian_noise(), sampling_times(config, 4))
    torch.testing.assert_close(drawn, point.expand_as(drawn))


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("sampler", PLAIN)
def test_moments_of_the_samples(name: str, sampler: str) -> None:
    config = DiffusionConfig(name)
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = sample(sampler, Gaussian(config), noise, sampling_times(config, 60))
    # First-order samplers shrink the deviations a little.
    loose = 0.03 if ORDERS[sampler] == 2 else 0.06
    torch.testing.assert_close(drawn.mean(0), MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), COVARIANCE, atol=loose, rtol=0)


def test_velocity_and_denoised_agree_on_guided_outputs() -> None:
    """Guiding the network's output guides v and x alike."""
    g = torch.Generator().manual_seed(0)
    x, conditional, unconditional = (torch.randn(4, 3, generator=g) for _ in range(3))
    for name in FORMULATIONS:
        for predict in ("x", "noise", "v"):
            config = DiffusionConfig(name, predict)

            def guide(c: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
                return u + 3.0 * (c - u)

            both = [velocity(config, output, x, 0.4) for output in (conditional, unconditional)]
            torch.testing.assert_close(velocity(config, guide(conditional, unconditional), x, 0.4), guide(*both))


CENTRES = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def mixture_noise(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained() -> tuple[Mixture, DiffusionConfig, list[float], AmedPredictor, list[float]]:
    config = DiffusionConfig("edm")
    mixture, times = Mixture(config, CENTRES, 0.1), sampling_times(config, 5)
    predictor, losses = train_amed(lambda i: (mixture, mixture_noise(i, 128)), times, iterations=100)
    return mixture, config, times, predictor, losses


def test_amed_beats_euler_and_heun_at_equal_evaluations(trained) -> None:
    mixture, config, times, predictor, losses = trained
    noise = mixture_noise(10_000, 1000)
    truth = sample("heun", mixture, noise, sampling_times(config, 200))

    def error(sampler: str, steps: int, predictor: AmedPredictor | None = None) -> float:
        drawn = sample(sampler, mixture, noise, sampling_times(config, steps), predictor)
        return (drawn - truth).square().mean().sqrt().item()

    # 9 evaluations each.
    amed, euler, heun = error("amed", 5, predictor), error("euler", 9), error("heun", 5)
    assert amed < 0.8 * euler and amed < 0.5 * heun
    assert amed < 0.5 * error("amed", 5, AmedPredictor(times))
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])


class Watched(Gaussian):
    """Keeps the times at which it is asked for velocities: the teacher's are floats."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.asked: list[float] = []

    def velocity(self, x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            self.asked.append(float(t))
        return super().velocity(x, t)


def test_the_first_loss_of_amed_is_that_of_the_midpoint_method() -> None:
    """The teacher takes Heun's steps even in t^(1/7) inside each of the student's but the last, from the same noise;
    distances are in units of the path's deviation, the mean over the steps."""
    config, teacher_steps = DiffusionConfig("vp"), 3
    times, denoiser, plain = sampling_times(config, 4), Watched(config), Gaussian(config)
    noise = gaussian_noise(16)
    _, losses = train_amed(lambda i: (denoiser, noise), times, iterations=1, teacher_steps=teacher_steps)
    x = teacher = plain.scales(times[0])[1] * noise
    errors, asked = [], []
    for now, after in zip(times[:-2], times[1:-1]):
        x = amed_step(plain, x, now, after, 0.5, 1.0, 1.0)
        inside = [
            (now ** (1 / 7) + i / teacher_steps * (after ** (1 / 7) - now ** (1 / 7))) ** 7
            for i in range(teacher_steps + 1)
        ]
        for begin, end in zip(inside, inside[1:]):
            slope = plain.velocity(teacher, begin)
            ahead = plain.velocity(teacher + (end - begin) * slope, end)
            teacher = teacher + (end - begin) * (slope + ahead) / 2
            asked += [begin, end]
        a, b = plain.scales(after)
        errors.append((x - teacher).square().mean().item() / (a * a + b * b))
    assert denoiser.asked == pytest.approx(asked, rel=1e-6)
    assert losses == [pytest.approx(sum(errors) / len(errors), rel=1e-4)]


def test_a_predictor_of_another_diffusion_is_refused() -> None:
    config = DiffusionConfig()
    made = AmedPredictor(sampling_times(config, 3), diffusion=config)
    made.check(config)
    AmedPredictor(sampling_times(config, 3)).check(DiffusionConfig("edm"))  # made for none in particular
    with pytest.raises(ValueError, match="predictor: made for diffusion.predict v, the model has x"):
        made.check(DiffusionConfig(predict="x"))


def test_training_amed_repeats_and_leaves_the_network_alone() -> None:
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    config = DiffusionConfig()

    def output(x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        return network(torch.cat((x, torch.ones(len(x), 1) * t), dim=1))

    def train() -> tuple[AmedPredictor, list[float]]:
        denoiser = NetworkDenoiser(config, output)
        return train_amed(lambda i: (denoiser, mixture_noise(i, 16)), sampling_times(config, 4), iterations=3)

    state = torch.random.get_rng_state()
    (one, losses), (two, again) = train(), train()
    assert losses == again and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert all(p.grad is None for p in network.parameters())


def test_a_predictor_is_saved_and_loaded(trained, tmp_path: Path) -> None:
    mixture, config, times, predictor, _ = trained
    predictor.save(tmp_path / "amed.safetensors")
    loaded = AmedPredictor.load(tmp_path / "amed.safetensors")
    assert loaded.steps(times) == predictor.steps(times)
    drawn = [sample("amed", mixture, mixture_noise(5, 4), times, p) for p in (predictor, loaded)]
    assert torch.equal(*drawn)


def test_wrong_predictor_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "amed.safetensors"
    for write in (
        lambda: None,
        lambda: path.write_bytes(b"nonsense"),
        lambda: save_file({"times": torch.zeros(3)}, path),
        lambda: save_file({"times": torch.zeros(3)}, path, metadata={"format": "amed", "version": "1"}),
        lambda: save_file(
            {"times": torch.tensor([1.0, 0.0]), "net.0.bias": torch.zeros(4)},
            path,
            metadata={"format": "amed", "version": "1"},
        ),
    ):
        write()
        with pytest.raises(ValueError, match="amed.safetensors"):
            AmedPredictor.load(path)


def test_wrong_requests_are_named() -> None:
    exact, times = Gaussian(DiffusionConfig()), sampling_times(DiffusionConfig(), 3)
    with pytest.raises(ValueError, match="sampler: expected one of euler, heun, ddim, dpmpp_2m, amed, got 'nope'"):
        sample("nope", exact, gaussian_noise(), times)
    for sampler, predictor in (("amed", None), ("euler", AmedPredictor(times))):
        with pytest.raises(ValueError, match="predictor"):
            sample(sampler, exact, gaussian_noise(), times, predictor)
    with pytest.raises(ValueError, match="made for 3 steps"):
        sample("amed", exact, gaussian_noise(), sampling_times(DiffusionConfig(), 4), AmedPredictor(times))
    for bad in ([1.0], [1.0, 0.5], [0.5, 1.0, 0.0]):
        with pytest.raises(ValueError, match="times"):
            AmedPredictor(bad)
    with pytest.raises(ValueError, match="times"):
        train_amed(lambda i: (exact, gaussian_noise()), [1.0, 0.0])
    with pytest.raises(ValueError, match="iterations"):
        train_amed(lambda i: (exact, gaussian_noise()), times, iterations=0)
