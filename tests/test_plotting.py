"""Sheets of predictions: what names of classes are written, and which are counted right."""

import numpy as np

from kiloseg.plotting import prediction_sheet


def test_names_are_written_where_classes_lie_and_counted():
    labels = np.zeros((20, 20), np.int64)
    labels[2:6, 2:6], labels[10:18, 10:18], labels[0, :] = 1, 2, -1
    predicted = labels.clip(0)
    predicted[10:18, 10:16] = 3  # most of class 2
    image = np.zeros((20, 20, 3), np.uint8)
    shown = {"num_classes": 4, "background": 0, "title": "a title"}
    figure = prediction_sheet([(image, labels, predicted)], **shown, names=["background", "cat", "dog", "fox"])
    _, labeled, predicting = figure.axes
    assert [text.get_text() for text in labeled.texts] == ["cat", "dog"]
    written = {text.get_text(): (text.get_position(), text.get_color()) for text in predicting.texts}
    assert written == {"cat": ((3.5, 3.5), "black"), "fox": ((13.5, 13.5), "#c00000")}
    assert predicting.get_title() == "prediction, 1 of 2 objects right"
    plain = prediction_sheet([(image, labels, predicted)], **shown)
    assert not plain.axes[2].texts and plain.axes[2].get_title().startswith("prediction, 87% right")
