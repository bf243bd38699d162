from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_boundary.search._geometry import Box, length, project_onto_ball, project_onto_hyperplane, row_dot
from captum_boundary.search._landing import land, landing_band
from captum_boundary.search._oracle import Linearization, MarginOracle

SHARP = 12.0
APPROACH_STEPS = 10
OVERSHOOT = 1.02
POLISH = 4
KP = 6
RESERVE = 2
SHARE = 0.7
SCAN = 64
TOL = 1e-5
PATIENCE = 1.0
RHOS = (1.0,)
TSTEPS = 5
LAND = True
DIRS = 'rand'

LOG={}
class Descent:
    def __init__(self, oracle: MarginOracle, box: Box, norm: float, budget: int, seed: int, bar=None) -> None:
        self.oracle, self.box, self.norm, self.budget, self.seed = oracle, box, norm, budget, seed
        self.x = oracle.x
        self.points = oracle.x.clone()
        self.distance = torch.full_like(oracle.start_depth, torch.inf)
        self.scale = torch.maximum(oracle.start_depth, landing_band(oracle, oracle.all_rows)[0])
        shallow, deep = landing_band(oracle, oracle.all_rows)
        self.tol = 1e-5 if oracle.dtype==torch.float32 else 1e-10
        self.aim = (shallow * deep).sqrt()

    def left(self, rows: Tensor) -> Tensor:
        return self.budget - self.oracle.n_gradient[rows]

    def run(self) -> Tensor:
        rows = self.oracle.all_rows
        self.approach(rows)
        self.scan(rows[torch.isinf(self.distance)])
        rows = rows[torch.isfinite(self.distance)]
        LOG['approach']=self.distance.clone();LOG['g1']=self.oracle.n_gradient.clone()
        settled = self.polish(rows, POLISH);LOG['settled']=settled;LOG['rows']=rows;LOG['polish']=self.distance.clone()
        self.descend(rows[~settled], RESERVE)
        self.polish(rows[~settled], 99)
        LOG['descend']=self.distance.clone();LOG['g2']=self.oracle.n_gradient.clone()
        self.explore(rows)
        return self.points

    def offer(self, points: Tensor, rows: Tensor, depth: Tensor) -> Tensor:
        distance = length(points - self.x[rows], self.norm)
        better = (depth < 0) & (distance < self.distance[rows])
        self.points[rows[better]] = points[better]
        self.distance[rows[better]] = distance[better]
        return better

    def nearest_on(self, lin: Linearization, points: Tensor, rows: Tensor) -> Tensor:
        """Nearest point to x where linearization reaches -aim"""
        drop = lin.value + self.aim[rows] + row_dot(lin.slope, self.x[rows] - points)
        return project_onto_hyperplane(self.x[rows], lin.slope, drop.clamp_min(0), self.box.of(rows), self.norm)

    def approach(self, rows: Tensor) -> None:
        z = self.x.clone(); last = self.oracle.start_depth.clone(); slow = torch.zeros_like(rows)
        for k in range(min(APPROACH_STEPS, self.budget)):
            if len(rows) == 0: return
            lin = self.oracle.linearize(z[rows], rows, temperature=self.scale[rows] / SHARP)
            drop = lin.value * OVERSHOOT + self.aim[rows]
            step = project_onto_hyperplane(z[rows], lin.slope, drop, self.box.of(rows), self.norm)
            z[rows] = step
            depth, _ = self.oracle.depth(step, rows)
            crossed = depth < 0
            slow[rows] += depth > 0.8 * last[rows]
            last[rows] = depth
            landed, _ = land(self.oracle, self.box.of(rows[crossed]), step[crossed], rows[crossed], coarse=True)
            self.offer(landed, rows[crossed], torch.full_like(depth[crossed], -1.0))
            rows = rows[~crossed & (slow[rows] < 2)]

    def scan(self, rows: Tensor) -> None:
        x0 = self.x
        for trial in range(SCAN):
            if len(rows) == 0: return
            x, box = x0[rows], self.box.of(rows)
            g = torch.Generator().manual_seed(self.seed + trial)
            u = torch.rand(self.x.shape[1], generator=g, dtype=torch.float64).to(x)
            v = torch.randn(self.x.shape[1], generator=g, dtype=torch.float64).to(x)
            free = x + 0.5 * 4.0 ** (trial % 8) * (1 + x.abs().mean(1, keepdim=True)) * v
            inside = box.lower + u * (box.upper - box.lower)
            far = torch.where(torch.isfinite(inside), inside, free)
            depth, _ = self.oracle.depth(box.clamp(far), rows)
            crossed = depth < 0
            landed, _ = land(self.oracle, self.box.of(rows[crossed]), far[crossed], rows[crossed], coarse=True)
            self.offer(landed, rows[crossed], torch.full_like(depth[crossed], -1.0))

    def bundle_project(self, S, R, V):
        # S (n,K,D) slopes, R (n,K) drops, V valid
        G = S @ S.transpose(1, 2)
        diag = torch.diagonal(G, dim1=1, dim2=2).clamp_min(1e-30)
        lam = torch.zeros_like(R)
        K = R.shape[1]
        for _ in range(200):
            old = lam.clone()
            for i in range(K):
                new = (lam[:, i] + (R[:, i] - (G[:, i] * lam).sum(1)) / diag[:, i]).clamp_min(0)
                lam[:, i] = torch.where(V[:, i], new, torch.zeros_like(new))
            if (lam - old).abs().max() <= 1e-12 * lam.abs().max(): break
        return (S * lam[:, :, None]).sum(1)

    def polish(self, rows: Tensor, steps: int) -> Tensor:
        settled = torch.zeros_like(rows, dtype=torch.bool)
        index = torch.arange(len(rows), device=rows.device)
        n, Dm = len(rows), self.x.shape[1]
        y = self.points[rows]
        S = torch.zeros(n, KP, Dm).to(y); R = torch.zeros(n, KP).to(y); V = torch.zeros(n, KP, dtype=torch.bool)
        for k in range(steps):
            index = index[self.left(rows[index]) > 0]
            if len(index) == 0: break
            r = rows[index]
            x = self.x[r]
            lin = self.oracle.linearize(y[index], r)
            self.offer(y[index], r, lin.depth)
            # overshot: the older planes promise too little
            over = lin.depth < -0.05 * self.scale[r]
            V[index[over]] = False
            S[index, k % KP] = lin.slope; V[index, k % KP] = True
            R[index, k % KP] = lin.value + self.aim[r] + row_dot(lin.slope, x - y[index])
            p = self.box.of(r).clamp(x - self.bundle_project(S[index], R[index], V[index]))
            dy, dp = length(y[index] - x, self.norm), length(p - x, self.norm)
            near = lin.depth.abs() <= 0.05 * self.scale[r]
            gap = (dy - dp).abs() / dy
            ok = near & (lin.depth < 0) & (gap <= self.tol)
            settled[index[ok]] = True
            y[index] = p
            index = index[~ok & (dp > 0)]
        return settled

    def descend(self, rows: Tensor, reserve: int) -> None:
        if len(rows) == 0: return
        n = (SHARE * self.left(rows)).long()
        x = self.x
        z = self.points[rows]; radius = self.distance[rows].clone()
        tau = self.scale[rows] / SHARP
        for k in range(int(n.max())):
            act = (k < n).nonzero().flatten()
            r = rows[act]
            lin = self.oracle.linearize(z[act], r, temperature=tau[act])
            self.offer(z[act], r, lin.depth)
            t = (k / n[act]).to(z)
            rate = 0.05 * (0.1) ** t
            a = 0.01 + 0.99 * 0.5 * (1 + torch.cos(math.pi * t))
            rad = torch.where(lin.depth < 0, torch.minimum(radius[act], self.distance[r]) * (1 - rate), radius[act] * (1 + rate))
            radius[act] = rad
            d = z[act] - x[r]
            step = a * length(d, 2)
            d = d - (step / length(lin.slope, 2).clamp_min(1e-30))[:, None] * lin.slope
            ln = length(d, self.norm).clamp_min(1e-30)
            d = d * (rad / ln).clamp_min(1.0)[:, None]
            d = project_onto_ball(d, rad, self.norm)
            z[act] = self.box.of(r).clamp(x[r] + d)
        depth, _ = self.oracle.depth(z, rows)
        self.offer(z, rows, depth)
        landed, c = land(self.oracle, self.box.of(rows), self.points[rows], rows, coarse=True)
        self.offer(landed, rows, torch.where(c, -1.0, 1.0))

    def direction(self, trial: int) -> Tensor:
        D = self.x.shape[1]
        if DIRS == 'rand' or D > 512:
            g = torch.Generator().manual_seed(self.seed + trial // (2 if DIRS == 'anti' else 1))
            u = torch.randn(D, generator=g, dtype=torch.float64).to(self.x)
            if DIRS == 'anti' and trial % 2: u = -u
        else:
            block, k = divmod(trial, 2 * D)
            g = torch.Generator().manual_seed(self.seed + block)
            q = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))[0]
            u = (q[k // 2] * (1 - 2 * (k % 2))).to(self.x)
        return u / u.norm(p=self.norm)

    def explore(self, rows: Tensor) -> None:
        C = self.oracle.n_classes
        scores = self.oracle.start_scores[rows].scatter(1, self.oracle.target[rows][:, None], -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : C - 1]
        order = torch.where(self.oracle.sign[rows, None] > 0, order, -1)
        n = len(rows)
        trial = torch.zeros(n, dtype=torch.long); steps = torch.zeros_like(trial); fails = torch.zeros_like(trial)
        y = self.points[rows]; cls = order[:, 0].clone()
        Dm = self.x.shape[1]
        S = torch.zeros(n, KP, Dm).to(y); R = torch.zeros(n, KP).to(y); V = torch.zeros(n, KP, dtype=torch.bool)
        patience = max(C, int(PATIENCE * self.budget))
        while True:
            act = ((self.left(rows) > 0) & (fails < patience)).nonzero().flatten()
            if len(act) == 0: break
            r = rows[act]
            x = self.x[r]
            lin = self.oracle.linearize(y[act], r, rival=cls[act])
            better = self.offer(y[act], r, lin.depth)
            fails[act[better]] = 0
            over = lin.depth < -0.05 * self.scale[r]
            V[act[over]] = False
            slot = steps[act] % KP
            S[act, slot] = lin.slope; V[act, slot] = True
            R[act, slot] = lin.value + self.aim[r] + row_dot(lin.slope, x - y[act])
            p = self.box.of(r).clamp(x - self.bundle_project(S[act], R[act], V[act]))
            dp = length(p - x, self.norm)
            steps[act] += 1
            good = (dp < (1 - self.tol) * self.distance[r]) & (dp > 0) & (steps[act] < TSTEPS)
            y[act[good]] = p[good]
            cls[act[good]] = -1
            new = act[~good]
            trial[new] += 1; steps[new] = 0; fails[new] += 1; V[new] = False
            for t in trial[new].unique().tolist():
                w = new[trial[new] == t]
                if t < C - 1:
                    y[w] = self.points[rows[w]]; cls[w] = order[w, t]
                else:
                    u = self.direction(t)
                    rho = RHOS[t % len(RHOS)]
                    y[w] = self.box.of(rows[w]).clamp(self.x[rows[w]] + rho * self.distance[rows[w], None] * u)
                    cls[w] = -1
                    if LAND:
                        dep, _ = self.oracle.depth(y[w], rows[w])
                        cr = w[dep < 0]
                        if len(cr):
                            ld, _ = land(self.oracle, self.box.of(rows[cr]), y[cr], rows[cr], coarse=True)
                            bt = self.offer(ld, rows[cr], torch.full((len(cr),), -1.0))
                            y[cr] = ld
