"""The figures of `evaluate` that need a network: one of the config's `features`, or the pipeline's scorer."""

from __future__ import annotations

from omniloom.stages.evaluate.figure import LEAST_PICTURES, Figure, given

RANKED = {"captions": 1, "retrieval_captions": 2}


def by_scorer() -> dict[str, Figure]:
    """Those that need a stage before that makes a scorer."""
    drawn = {"drawings": LEAST_PICTURES}
    return {
        "scorer_score": Figure(
            "100 times the cosine of a drawn picture and its caption by the scorer",
            "higher",
            given("scorer_score_shuffled"),
            "of others' captions",
            drawn,
            True,
            network="scorer",
        ),
        "scorer_score_real": Figure("the same of held-out pictures", asks=drawn, network="scorer"),
        "scorer_score_shuffled": Figure(
            "the same of held-out pictures and others' captions: the floor", asks=drawn, network="scorer"
        ),
        "scorer_mmd": Figure(
            "1000 times the kernel distance of drawn and held-out pictures in the scorer's features",
            "lower",
            given("scorer_mmd_train"),
            "of train pictures",
            drawn,
            True,
            network="scorer",
        ),
        "scorer_mmd_train": Figure(
            "the same distance of as many train pictures: the floor", asks=drawn, network="scorer"
        ),
        "scorer_recall_at_1": Figure(
            "share of the pictures whose own caption the scorer puts first, of the same captions",
            "higher",
            given("retrieval_recall_at_1_chance"),
            asks=RANKED,
            network="scorer",
            of_model=False,
        ),
    }


def in_features() -> dict[str, Figure]:
    """Those that need a network of the config's `features`."""
    drawn, filmed = {"drawings": LEAST_PICTURES}, {"videos": LEAST_PICTURES}
    distances = {
        "fid": ("inception", "FID: Fréchet distance between drawn and held-out pictures in Inception v3's features"),
        "kid": ("inception", "KID: kernel distance of drawn and held-out pictures in Inception v3's features"),
        "fd_dinov2": ("dinov2", "Fréchet distance between drawn and held-out pictures in DINOv2's features"),
        "cmmd": ("clip", "CMMD: 1000 times the kernel distance of drawn and held-out pictures' CLIP embeddings"),
    }
    found: dict[str, Figure] = {}
    for name, (network, meaning) in distances.items():
        mark = given(f"{name}_train")
        found[name] = Figure(meaning, "lower", mark, "of train pictures", drawn, True, network=network)
        told = "the same distance of as many train pictures: the floor"
        found[f"{name}_train"] = Figure(told, asks=drawn, network=network)
    found["kid_std"] = Figure("deviation of KID over its subsets", asks=drawn, by_objective=True, network="inception")
    for network, called in (("inception", "Inception v3"), ("dinov2", "DINOv2")):
        within = f"in {called}'s features"
        for name, meaning in (
            ("precision", f"share of the drawn pictures within the held-out ones' manifold of 3 neighbours, {within}"),
            ("recall", f"share of the held-out pictures within the drawn ones' manifold of 3 neighbours, {within}"),
            ("density", f"held-out pictures' balls of 5 neighbours that a drawn one lies in, over 5, {within}"),
            (
                "coverage",
                f"share of the held-out pictures with a drawn one nearer than their fifth neighbour, {within}",
            ),
        ):
            found[f"{name}_{network}"] = Figure(meaning, "higher", asks=drawn, by_objective=True, network=network)
    found["clip_score"] = Figure(
        "100 times the cosine of a drawn picture's CLIP embedding and its caption's, 0 where below",
        "higher",
        given("clip_score_real"),
        "of held-out pictures",
        drawn,
        True,
        network="clip",
    )
    found["clip_score_real"] = Figure("the same of held-out pictures", asks=drawn, network="clip")
    found["rfid"] = Figure(
        "Fréchet distance between held-out pictures and their reconstructions in Inception v3's features",
        "lower",
        asks={"reconstructions": LEAST_PICTURES},
        network="inception",
    )
    for kind in ("image", "video"):
        found[f"recon_lpips_{kind}"] = Figure(
            f"LPIPS (VGG-16) of reconstructed {kind}s", "lower", asks={"reconstructions": 1}, network="lpips"
        )
    found["fvd"] = Figure(
        "FVD: Fréchet distance between drawn and held-out videos in I3D's features",
        "lower",
        asks=filmed,
        by_objective=True,
        network="i3d",
    )
    return found
