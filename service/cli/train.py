"""The commands `train` and `recipes`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.cli.terminal import EpochsBar, plain_warnings, say
from service.cli.training import load_training

_DATA, _NETWORK, _BUDGET = "Data", "Network and loss", "Budget"


def _option(text: str, panel: str, default: str = "") -> Any:
    return typer.Option(help=text, show_default=default or False, rich_help_panel=panel)


def train(
    out: Annotated[Path, typer.Option(help="Folder to write the run to.", show_default=False)],
    recipe: Annotated[
        str | None, _option("A training by name, with its data set unless --data names other data.", _NETWORK)
    ] = None,
    data: Annotated[
        str | None,
        _option(
            "`digits` (the 8x8 digits that scikit-learn ships); an .npz with x_train, y_train, x_test, y_test and, if "
            "you like, x_holdout, y_holdout, x_validation, y_validation, class_names (images uint8 (N, H, W, 3)); a "
            "folder with train/<class>/ and test/<class>/; a .txt list of `path label` lines with --test-list; cifar10 "
            "or cifar100; imagenet-lt, places-lt or inaturalist-2018 by their official lists.",
            _DATA,
            "digits, or the recipe's",
        ),
    ] = None,
    imbalance_ratio: Annotated[
        float | None,
        _option(
            "Cut the training images to a long tail with this ratio of the largest to the smallest class.",
            _DATA,
            "50 for digits, others as they are",
        ),
    ] = None,
    root: Annotated[Path | None, _option("Folder of a named data set, or where a list's paths begin.", _DATA)] = None,
    download: Annotated[bool, _option("Fetch CIFAR where --root lacks it.", _DATA)] = False,
    image_size: Annotated[
        int | None, _option("Side in pixels that images of a folder or a list are scaled to.", _DATA)
    ] = None,
    corrupt: Annotated[
        Literal["stop", "skip"] | None, _option("What to do with files that are no images.", _DATA, "stop")
    ] = None,
    calibration_per_class: Annotated[
        int | None, _option("Images of each class that CIFAR's long tail leaves over, held out for the fit.", _DATA)
    ] = None,
    test_list: Annotated[Path | None, _option("List of the test images.", _DATA)] = None,
    calibration_list: Annotated[Path | None, _option("List of the images for the fit.", _DATA)] = None,
    validation_list: Annotated[Path | None, _option("List of images to choose an epoch by.", _DATA)] = None,
    class_names: Annotated[Path | None, _option("Class names of a list, one a line, in order.", _DATA)] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode images.", rich_help_panel=_DATA, min=0)] = 0,
    loss: Annotated[
        Literal["cross-entropy", "balanced-softmax"] | None,
        _option("What the network is trained with.", _NETWORK, "cross-entropy, or the recipe's"),
    ] = None,
    backbone: Annotated[
        str | None, _option("small, resnet32, or timm/NAME such as timm/resnet50.", _NETWORK, "by image size")
    ] = None,
    norm: Annotated[Literal["bn", "nbn"] | None, _option("Batch normalisation, or NBN.", _NETWORK, "bn")] = None,
    head: Annotated[Literal["linear", "cosine"] | None, _option("The last layer.", _NETWORK, "linear")] = None,
    cibl_alpha: Annotated[
        float | None, _option("Train with CIBL's contrastive loss beside the other, at this trade-off.", _NETWORK)
    ] = None,
    first_stage: Annotated[
        Path | None,
        _option("A complete run that a two-stage recipe starts from, instead of training it anew.", _NETWORK),
    ] = None,
    epochs: Annotated[int | None, _option("Passes over the training images.", _BUDGET, "by image size")] = None,
    batch_size: Annotated[int | None, _option("Images a step.", _BUDGET, "by image size")] = None,
    learning_rate: Annotated[float | None, _option("Largest learning rate.", _BUDGET, "by image size")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, _option("Of the network's passes.", _BUDGET, "float32")
    ] = None,
    select: Annotated[Literal["last", "validation"] | None, _option("The epoch that is kept.", _BUDGET, "last")] = None,
    augmented_passes: Annotated[
        int | None,
        _option(
            "Look at the training images so many times through their augmentation afterwards, for "
            "`equipoise fit --method marc-paper`.",
            _BUDGET,
            "0, or the recipe's",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same network on the same machine.", rich_help_panel=_BUDGET)
    ] = 0,
) -> None:
    """Train a classifier and write a run folder (network, logits of held-out images, how it was made).

    The same command again goes on with a training that was stopped. For several GPUs start it with torchrun.
    """
    runs, recipes = load_training("runs"), load_training("recipes")
    known = None if recipe is None else recipes.recipe(recipe)
    if known is not None and data is None:
        data, imbalance_ratio = known.data, known.imbalance_ratio if imbalance_ratio is None else imbalance_ratio
    if known is not None and augmented_passes is None:
        augmented_passes = known.augmented_passes
    parts = _given(backbone=backbone, norm=norm, head=head)
    changes = _given(
        loss=loss, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, precision=precision, select=select
    )
    options = _given(
        root=root,
        download=download or None,
        image_size=image_size,
        corrupt=corrupt,
        calibration_per_class=calibration_per_class,
        test_list=test_list,
        calibration_list=calibration_list,
        validation_list=validation_list,
        class_names=class_names,
    )
    with EpochsBar(f"training {recipe or 'with ' + (loss or 'cross-entropy')}") as progress, plain_warnings():
        runs.train_run(
            data or "digits",
            out=out,
            imbalance_ratio=imbalance_ratio,
            data_options=options,
            workers=workers,
            augmented_passes=augmented_passes or 0,
            first_stage=first_stage,
            progress=progress,
            config=None if known is None else known.config,
            parts=parts,
            cibl_alpha=cibl_alpha,
            seed=seed,
            **changes,
        )
    if load_training("loop").new_accelerator().is_main_process:  # of torchrun's processes, one speaks
        say(f"Trained. Next: equipoise fit {out}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def recipes() -> None:
    """List the trainings that have a name: those of the papers, and ours."""
    for each in load_training("recipes").recipes():
        config = each.config
        network = [config.architecture.backbone]
        network += ["NBN"] if config.architecture.norm == "nbn" else []
        network += ["logit rectification"] if config.architecture.rectify else []
        network += [f"{config.architecture.head} head"]
        loss = config.loss + (" and CIBL" if config.cibl else "") + (", then Meta Sampler" if config.decoupled else "")
        data = each.data + (f" ratio {each.imbalance_ratio:g}" if each.imbalance_ratio else "")
        budget = f"{config.epochs} epochs of batch {config.batch_size}"
        say(f"{each.name}\n    {data}; {', '.join(network)}; {loss}; {budget}")
        say(f"    after {each.source}{'' if each.tried else '; not run by this project'}")
