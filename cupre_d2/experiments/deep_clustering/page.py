"""The table's page in Markdown, and its figures as PNG."""

from cupre_d2.experiments import pictures
from cupre_d2.experiments.deep_clustering import figures, series, tables
from cupre_d2.experiments.deep_clustering.latents import latent_map
from cupre_d2.experiments.deep_clustering.outcome import Outcome, choose_by_type
from cupre_d2.experiments.deep_clustering.scores import EvaluatedSets

SCORE = (
    "MAP is the DSB2018 score in percent, the mean over images. The baseline is one network, trained on the known type "
    "alone; each other row is that network with its encoder retrained on clusters of the unknown types' images, of which "
    "no annotation is read. Mean ± standard deviation over seeds, which are those of samples, clusters and retraining; in "
    "brackets the mean less the baseline. k is the number of clusters; growing neural gas grows to at most as many."
)
STATISTICS = (
    "What the clusters look like, means over seeds: their number, those without a sample, the largest, the normalised "
    "entropy of their sizes (1: all alike), and that of each type's counts, its mean and its standard deviation over types."
)
SCORES = "Against the number of clusters; dashed the baseline."
ENTROPIES = (
    "The standard deviation over types of the normalised entropy of a type's counts over the clusters, our reading of the "
    "paper's Fig. 8, which comes without a formula."
)
LATENTS = "The baseline's latent space by t-SNE: samples where it puts them, framed in the colour of their type."
PICTURES = (
    "Before and after, with the most clusters and the first seed: of each unknown type (the four with most images) the "
    "image with the median number of cells, chosen by that alone."
)


def title(outcome: Outcome) -> str:
    return f"{outcome.experiment.dataset}: deep clustering"


def images(sets: EvaluatedSets) -> str:
    """Which images the numbers are of."""
    known = ", ".join(f"{name} ({sets.images[name]} images)" for name in sets.known)
    unknown = f"{sets.unknown} ({sets.images[sets.unknown]} images)"
    return f"Known: {known}. Unknown: {unknown}, which are the images that are clustered, as in the paper."


def write_page(outcome: Outcome) -> None:
    """RESULTS.md and its figures.

    Raises:
        DatasetError: images or detections cannot be used.
        CheckpointError: the baseline's checkpoint cannot.
    """
    baseline, rows, name = outcome.baseline, outcome.rows, outcome.results.name
    dataset = outcome.sets.unknown
    figures.draw_scores(series.scores(baseline, rows), outcome.beside(".png"))
    found = latent_map(outcome.cfg, outcome.tasks[None].checkpoint, outcome.sets.names("all"))
    figures.draw_map(found, outcome.beside("_latents.png"))
    detections = {arm: task.detections(dataset) for arm, task in outcome.before_and_after().items()}
    pictures.compare(detections, dataset, outcome.use_cats, choose_by_type(dataset), outcome.beside("_pictures.jpg"))
    parts = [
        *outcome.header(title(outcome)),
        images(outcome.sets),
        SCORE,
        tables.headline(baseline, rows).markdown(),
        SCORES,
        f"![MAP against the number of clusters]({name}.png)",
        STATISTICS,
        tables.statistics(rows).markdown(),
    ]
    entropies = series.entropies(rows)
    if entropies.series:
        figures.draw_entropies(entropies, outcome.beside("_entropy.png"))
        parts += [ENTROPIES, f"![entropy against the number of clusters]({name}_entropy.png)"]
    parts += [LATENTS, f"![latent space]({name}_latents.png)", PICTURES, f"![before and after]({name}_pictures.jpg)"]
    outcome.beside(".md").write_text("\n\n".join(parts) + "\n")
