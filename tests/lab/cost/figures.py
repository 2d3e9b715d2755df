"""Measurements written by hand, with ratios that can be computed by hand."""

from sgdph.lab.cost.figures import CellFigures, KindFigures, SystemFigures


def kind(share: float, seconds: list[float], peaks: list[int], flops: int) -> KindFigures:
    return KindFigures(
        share,
        wall_seconds=[s + 1 for s in seconds],
        process_seconds=seconds,
        peak_bytes=peaks,
        total_peak_bytes=[p + 100 for p in peaks],
        flops=[flops],
    )


def cell(model: str = "resnet8", batch_size: int = 2) -> CellFigures:
    """Make the figures of SGDM and of a system whose every tenth step costs more."""
    return CellFigures(
        model,
        batch_size,
        parameters=1234,
        newton=5,
        visited=["a", "b"],
        systems=[
            SystemFigures("sgdm", "SGDM", 1, None, {"plain": kind(1, [1.0, 2.0, 4.0], [100], 30)}),
            SystemFigures(
                "sgdph-interval10",
                "SGD-PH, interval 10",
                10,
                1.25,
                {
                    "refresh": kind(0.1, [11.0, 12.0, 20.0], [400, 200], 90),
                    "plain": kind(0.9, [1.0, 2.0, 8.0], [100], 30),
                },
            ),
        ],
        environment={
            "device": "cpu",
            "device_name": None,
            "cpu": "a CPU",
            "threads": 1,
            "platform": "here",
            "python": "3",
            "torch": "2",
            "git_commit": None,
            "command": "sgdph cost",
            "optimizers": {},
        },
    )
