"The loss, against the same thing worked out sample by sample in plain Python."
import math

import diffusers, pytest, torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from hypothesis import given, strategies as st

from styleboost.bases.processes import Gaussian, Masked, snr
from styleboost.training.objective import binding_losses, total_loss

KINDS = ['epsilon', 'v_prediction']
NOISE = {k: diffusers.DDPMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear', prediction_type=k) for k in KINDS}

ALPHA, _a = [], 1.
for i in range(1000): _a *= 1-(math.sqrt(.00085)+(math.sqrt(.012)-math.sqrt(.00085))*i/999)**2; ALPHA.append(_a)

def drawn(n, seed):
    g = torch.Generator().manual_seed(seed)
    z, eps, pred = torch.randn((3,n,2,3,3), generator=g)
    return z, eps, pred, torch.randint(1000, (n,), generator=g)

def losses(kind, gamma, sizes, z, eps, pred, t):
    p = Gaussian(NOISE[kind]).weighing(gamma)
    return binding_losses(p.losses(pred, p.target(z, eps, t), t), sizes)

def by_hand(kind, gamma, sizes, z, eps, pred, t):
    "Each binding's mean of weight times mean squared error, with nothing but lists and floats."
    each = []
    for z1, e1, p1, t1 in zip(z.flatten(1).tolist(), eps.flatten(1).tolist(), pred.flatten(1).tolist(), t.tolist()):
        a = ALPHA[t1]; s = a/(1-a)
        y = e1 if kind=='epsilon' else [math.sqrt(a)*e-math.sqrt(1-a)*x for e,x in zip(e1, z1)]
        w = 1. if gamma is None else min(s, gamma)/(s if kind=='epsilon' else s+1)
        each.append(w*sum((p-v)**2 for p,v in zip(p1, y))/len(y))
    out = []
    for n in sizes: part, each = each[:n], each[n:]; out.append(sum(part)/n)
    return out

sizes_ = st.lists(st.integers(1, 4), min_size=1, max_size=4)
gammas = st.none() | st.floats(.01, 50)
seeds = st.integers(0, 10**6)

@given(st.sampled_from(KINDS), gammas, sizes_, seeds, st.data())
def test_the_loss_is_the_weighted_sum_of_each_bindings_own_mean(kind, gamma, sizes, seed, data):
    batch = drawn(sum(sizes), seed)
    lambdas = data.draw(st.lists(st.floats(0, 5), min_size=len(sizes), max_size=len(sizes)))
    got, want = losses(kind, gamma, sizes, *batch), by_hand(kind, gamma, sizes, *batch)
    assert [l.item() for l in got]==pytest.approx(want, rel=1e-3)
    assert total_loss(got, lambdas).item()==pytest.approx(sum(w*l for w,l in zip(lambdas, want)), rel=1e-3, abs=1e-9)

@given(st.sampled_from(KINDS), sizes_, seeds, st.data())
def test_a_binding_weighs_the_same_wherever_it_stands(kind, sizes, seed, data):
    parts = [drawn(n, seed+i) for i,n in enumerate(sizes)]
    alone = [losses(kind, 5., [n], *p)[0].item() for n,p in zip(sizes, parts)]
    row = data.draw(st.permutations(range(len(sizes))))
    batch = [torch.cat([parts[i][k] for i in row]) for k in range(4)]
    assert [l.item() for l in losses(kind, 5., [sizes[i] for i in row], *batch)]==pytest.approx([alone[i] for i in row], rel=1e-5)

@pytest.mark.parametrize('kind', KINDS)
def test_one_picture_of_each_binding_is_weighed_by_its_own_noise_level(kind):
    z, eps, pred, _ = drawn(2, 0)
    t = torch.tensor([20, 900])
    plain, weighed = losses(kind, None, [1,1], z, eps, pred, t), losses(kind, 5., [1,1], z, eps, pred, t)
    ratio = [(w/p).item() for w,p in zip(weighed, plain)]
    assert ratio==pytest.approx([min(s,5)/(s+(kind!='epsilon')) for s in (ALPHA[i]/(1-ALPHA[i]) for i in t.tolist())], rel=1e-3)

@given(st.sampled_from(KINDS), gammas, st.integers(1, 4), st.integers(1, 4), seeds)
def test_a_prior_of_weight_nought_leaves_the_gradient_of_one_binding(kind, gamma, n, m, seed):
    z, eps, x, t = drawn(n+m, seed)
    layer = torch.nn.Conv2d(2, 2, 1)
    def gradient(k, sizes, lambdas):
        layer.zero_grad(); total_loss(losses(kind, gamma, sizes, z[:k], eps[:k], layer(x[:k]), t[:k]), lambdas).backward()
        return [p.grad.clone() for p in layer.parameters()]
    for a,b in zip(gradient(n+m, [n,m], [1.,0.]), gradient(n, [n], [1.])): torch.testing.assert_close(a, b)

@given(st.integers(1, 4), st.floats(0, 3), seeds)
def test_two_bindings_have_the_gradient_of_dreambooths_formula(n, weight, seed):
    z, eps, x, t = drawn(2*n, seed)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1)
    total_loss(losses('epsilon', None, [n,n], z, eps, layer(x), t), [1.,weight]).backward()
    ours = [p.grad.clone() for p in layer.parameters()]; layer.zero_grad()
    (pred, prior), (y, prior_y) = layer(x).chunk(2), eps.chunk(2)            # as in diffusers' train_dreambooth.py
    (F.mse_loss(pred, y, reduction='mean')+weight*F.mse_loss(prior, prior_y, reduction='mean')).backward()
    for a,p in zip(ours, layer.parameters()): torch.testing.assert_close(a, p.grad)

@pytest.mark.parametrize('kind', KINDS)
def test_a_perfect_prediction_gives_the_clean_latent_back_through_diffusers(kind):
    z, eps, _, _ = drawn(1, 3)
    sampler = diffusers.DDIMScheduler.from_config(NOISE[kind].config, clip_sample=False); sampler.set_timesteps(1000)
    for i in (0, 1, 500, 999):
        t = torch.tensor([i])
        zt = NOISE[kind].add_noise(z, eps, t)
        torch.testing.assert_close(zt, math.sqrt(ALPHA[i])*z+math.sqrt(1-ALPHA[i])*eps, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sampler.step(Gaussian(NOISE[kind]).target(z, eps, t), i, zt).pred_original_sample, z, rtol=1e-3, atol=1e-3)

def test_the_signal_to_noise_ratio_is_diffusers_own():
    t = torch.arange(1000)
    torch.testing.assert_close(snr(NOISE['epsilon'], t), compute_snr(NOISE['epsilon'], t), rtol=1e-4, atol=0)

def test_the_embedded_base_is_noised_as_it_was_trained(base):
    assert base.process.schedule.alphas_cumprod.tolist()==pytest.approx(ALPHA, rel=1e-3) and base.process.schedule.config.prediction_type in KINDS

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_large_errors_do_not_overflow_in_half_precision(dtype):
    pred = torch.full((1,2,3,3), 300., dtype=dtype)
    assert Gaussian(NOISE['epsilon']).losses(pred, torch.zeros_like(pred), torch.tensor([0])).item()==pytest.approx(90000)

@pytest.mark.parametrize('sizes', [[1,1], [2,2]])
def test_samples_that_do_not_fit_their_bindings_are_refused(sizes):
    with pytest.raises(ValueError, match='fit together'): binding_losses(torch.zeros(3), sizes)

def test_a_weight_for_no_binding_is_refused():
    with pytest.raises(ValueError): total_loss([torch.tensor(1.)], [1.,1.])

def test_a_base_that_predicts_something_else_is_refused(refused):
    z = torch.zeros(1,1,1,1)
    with refused('sample'): Gaussian(diffusers.DDPMScheduler(prediction_type='sample')).target(z, z, torch.tensor([1]))

# which noise levels are seen

@pytest.mark.parametrize('mean, spread', [(-6., 2.), (0., 1.)])
def test_levels_are_those_of_a_truncated_normal_in_log_snr(mean, spread):
    "Each level's share against the normal's mass in the cell around its log-SNR, over what lies within the schedule."
    p = Gaussian(NOISE['epsilon']).around(mean, spread)
    lam = snr(NOISE['epsilon'], torch.arange(1000)).double().log().tolist()
    edges = [lam[0]]+[(a+b)/2 for a,b in zip(lam, lam[1:])]+[lam[-1]]
    cdf = lambda v: .5*(1+math.erf((v-mean)/spread/2**.5))
    want = torch.tensor([cdf(a)-cdf(b) for a,b in zip(edges, edges[1:])])
    want, n = want/want.sum(), 200_000
    got = torch.bincount(p.drawn(n, torch.Generator().manual_seed(0)), minlength=1000)/n
    assert (got-want).abs().sum()<.08 and (got.cumsum(0)-want.cumsum(0)).abs().max()<.006

def test_levels_are_as_they_were_unless_asked_for():
    draw = lambda p: p.drawn(50, torch.Generator().manual_seed(4))
    assert draw(Gaussian(NOISE['epsilon']))[:].tolist()==torch.randint(1000, (50,), generator=torch.Generator().manual_seed(4)).tolist()==draw(Gaussian(NOISE['epsilon']).around(-6.).around(None)).tolist()

def test_a_level_that_a_base_has_not_is_refused(refused):
    with refused('-30', 'between these'): Gaussian(NOISE['epsilon']).around(-30., 2.)
    with refused('log_snr', 'tokens'): Masked(diffusers.AmusedScheduler(mask_token_id=1)).around(-6., 2.)
