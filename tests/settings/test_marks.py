"""Which fields of a recipe may change when a run goes on, and which change a test alone, typed here a second time."""

import dataclasses

from cgnl.settings.detection import DetectionRecipe
from cgnl.settings.image import Recipe
from cgnl.settings.marks import fields_for_tests
from cgnl.settings.video import VideoRecipe

FREE = """
    data.root data.train_list data.val_list data.test_list data.follow_links data.workers data.timeout data.bad_limit
    data.annotations data.index data.decode_timeout data.test_clips data.test_crops data.views_per_step
    data.test_wrap data.frame_pattern data.frame_tolerance data.missing_limit
    data.train_annotations data.val_annotations data.test_annotations
    data.train_images data.val_images data.test_images
    trainer.max_epochs trainer.max_steps trainer.checkpoint_every_n_steps trainer.log_every_n_steps
    trainer.skip_limit trainer.early_stopping trainer.devices trainer.nodes trainer.accelerator
    network.weights network.new_classifier network.backbone_weights block.g_std
"""


def test_what_may_change_when_a_run_goes_on():
    marked = {
        f"{part.name}.{field.name}"
        for recipe in (Recipe(), VideoRecipe(), DetectionRecipe())
        for part in dataclasses.fields(recipe)
        for field in dataclasses.fields(getattr(recipe, part.name))
        if field.metadata.get("free")
    }
    assert marked == set(FREE.split())


def test_what_changes_a_test_alone():
    assert fields_for_tests(Recipe().network) == {}
    assert fields_for_tests(VideoRecipe().network) == {"head": "average"}
    assert set(fields_for_tests(DetectionRecipe().network)) == {"proposals", "detections", "score_threshold"}
