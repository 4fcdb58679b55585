"""Metrics in percent, and metrics without true boxes."""

from ovd.metric import NO_TRUE_BOX, is_known, per_cent


def test_a_metric_without_a_true_box_is_no_number():
    assert [is_known(metric) for metric in (0.0, 1.0, -1, NO_TRUE_BOX)] == [True, True, False, False]
    assert [per_cent(metric) for metric in (0.0, 0.1234, 1.0, -1.0)] == ["0.00", "12.34", "100.00", "-"]
    assert per_cent(0.1234, 1) == "12.3"
