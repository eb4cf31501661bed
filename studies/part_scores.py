"""How well do the maps of an NL and of a CGNL block cover the parts of the drawn birds?

A ResNet-18 learns the drawn birds; two copies of it go on for some epochs, one with an NL block and one with a CGNL
block, and their maps are scored against the annotated parts (`cgnl.explain.score`).

    python studies/part_scores.py
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from cgnl.explain.figures import save_figure
from cgnl.explain.score import scores_figure, scores_table
from cgnl.recipes import RECIPES
from cgnl.settings.image import Recipe
from cgnl.tasks import load_trained, score_parts, train
from cgnl.toy.birds import draw_birds
from script import begin, study, write

BLOCKS = {"NL": "nl", "CGNL": "cgnl"}
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "part_scores.svg"


def recipe_of(block: str, root: Path, weights: Path | None, epochs: int, seed: int) -> Recipe:
    """Return the recipe of the drawn birds with that block, at the demo's size."""
    recipe = RECIPES["birds-resnet18-cgnl"].make()
    return replace(
        recipe,
        network=replace(recipe.network, block=block, weights=str(weights) if weights else None),
        data=replace(recipe.data, root=root, size=96, resize=110),
        optimizer=replace(recipe.optimizer, lr=recipe.optimizer.lr * (0.5 if weights else 1.0)),
        trainer=replace(recipe.trainer, max_epochs=epochs, seed=seed, devices=1, test_every_n_epochs=4),
    )


def main() -> None:
    """Train, score, and write the record and the plot."""
    parser = study(__file__, __doc__)
    parser.add_argument("--epochs", type=int, nargs=2, default=(12, 8), help="of the base and of each copy")
    parser.add_argument("--limit", type=int, default=400, help="test images that are scored")
    arguments = begin(parser)
    base_epochs, copy_epochs = arguments.epochs
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "birds"
        draw_birds(root, num_species=10, train_images=60, test_images=40, seed=arguments.seed)
        train(recipe_of("none", root, None, base_epochs, arguments.seed), Path(folder) / "base")
        start = Path(folder) / "base" / "last.ckpt"
        for name, block in BLOCKS.items():
            run = Path(folder) / block
            train(recipe_of(block, root, start, copy_epochs, arguments.seed), run)
            trained = load_trained(run / "last.ckpt")
            scores.append((name, score_parts(trained, root, limit=arguments.limit, seed=arguments.seed)))
    print(scores_table(scores))
    save_figure(scores_figure(scores), FIGURE)
    rows = [{"network": name, **score.as_dict()} for name, score in scores]
    write(arguments, rows, epochs=list(arguments.epochs), limit=arguments.limit)


if __name__ == "__main__":
    main()
