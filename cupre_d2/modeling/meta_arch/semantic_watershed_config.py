"""The config keys of SemanticWatershed."""

from detectron2.config import CfgNode as CN


def add_semantic_watershed_config(cfg: CN) -> None:
    """Adds MODEL.UNET and MODEL.SEMANTIC_WATERSHED with their defaults, in place."""
    cfg.MODEL.UNET = CN()
    # Channels of the decoder's steps, from coarse to fine: as many as the latent's stride has factors 2.
    cfg.MODEL.UNET.CHANNELS = (256, 128, 64, 32, 16)
    # Norm of the decoder, as MODEL.RESNETS.NORM.
    cfg.MODEL.UNET.NORM = "BN"
    # Groups of the decoder's GroupNorm (NORM "GN").
    cfg.MODEL.UNET.GN_GROUPS = 32

    cfg.MODEL.SEMANTIC_WATERSHED = CN()
    keys = cfg.MODEL.SEMANTIC_WATERSHED
    # Where the border class lies: "inner" (in the cell), "outer" (around it, and between cells that touch) or "both".
    keys.BORDER = "inner"
    # Width of the border, pixels of the network's input; "both" is twice as wide.
    keys.BORDER_WIDTH = 2
    # Probabilities, 0 to 1. Connected pixels whose p(cell) is above this start a cell.
    keys.SEED_THRESHOLD = 0.8
    # Pixels whose p(foreground) is below this start the background.
    keys.BACKGROUND_THRESHOLD = 0.2
    # Pixels whose p(foreground) is above this are flooded first.
    keys.RELIEF_THRESHOLD = 0.3
    # Cells whose mean p(foreground) is below this are dropped.
    keys.SCORE_THRESHOLD = 0.6
