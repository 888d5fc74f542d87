//! Plots as SVG elements.

use std::ops::Range;

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::error::BenchError;
use crate::table::figure;

/// Size of a plot; the page scales it to its width.
const SIZE: (u32, u32) = (960, 420);
const FONT: &str = "sans-serif";
/// Colours that differ for readers who do not see all of them (Okabe and Ito, "Color Universal
/// Design").
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(100, 100, 100),
    RGBColor(0, 0, 0),
];
const INK: RGBColor = RGBColor(60, 70, 85);
const GRID: RGBColor = RGBColor(228, 232, 238);

/// Points of a plot with a name.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Name for the legend.
    pub name: String,
    /// Points in the order of their first value.
    pub points: Vec<(f64, f64)>,
}

/// Descriptions of the axes.
#[derive(Debug, Clone, Copy)]
pub struct Axis<'a> {
    /// Description of the horizontal axis.
    pub x: &'a str,
    /// Description of the vertical axis.
    pub y: &'a str,
}

fn failed(error: impl std::fmt::Display) -> BenchError {
    BenchError::Plot(error.to_string())
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Smallest and largest of some values, without those that no axis can show.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |span, v| match span {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

/// Whole decades around positive values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = span(values.filter(|v| *v > 0.0)).unwrap_or((1.0, 10.0));
    let low = 10f64.powf(low.log10().floor());
    let high = 10f64.powf(high.log10().ceil());
    low..if high > low { high } else { low * 10.0 }
}

/// Plots the share of values that are at most so large, on a logarithmic scale: one line for each
/// name.
///
/// # Errors
/// [`BenchError::Plot`].
pub fn ecdf(named: &[(String, Vec<f64>)], axis: Axis<'_>) -> Result<String, BenchError> {
    let series: Vec<Series> = named
        .iter()
        .map(|(name, values)| {
            let mut sorted: Vec<f64> =
                values.iter().copied().filter(|v| *v > 0.0 && v.is_finite()).collect();
            sorted.sort_by(f64::total_cmp);
            let n = sorted.len() as f64;
            let mut points = Vec::with_capacity(2 * sorted.len());
            for (at, value) in sorted.into_iter().enumerate() {
                points.push((value, at as f64 / n));
                points.push((value, (at + 1) as f64 / n));
            }
            Series { name: name.clone(), points }
        })
        .collect();
    let xs = decades(series.iter().flat_map(|s| s.points.iter().map(|p| p.0)));
    let percent = |share: &f64| format!("{:.0} %", share * 100.0);
    let legend = SeriesLabelPosition::UpperLeft;
    let ms = |ms: &f64| decimal(*ms);
    draw(xs.log_scale(), 0.0..1.0, &series, Mark::Line, axis, &ms, &percent, legend)
}

/// Lines over a common horizontal axis; the vertical one begins at 0.
///
/// # Errors
/// [`BenchError::Plot`].
pub fn lines(series: &[Series], axis: Axis<'_>) -> Result<String, BenchError> {
    let all = || series.iter().flat_map(|s| s.points.iter());
    let (left, right) = span(all().map(|p| p.0)).unwrap_or((0.0, 1.0));
    let (_, top) = span(all().map(|p| p.1)).unwrap_or((0.0, 1.0));
    let top = if top > 0.0 { top * 1.25 } else { 1.0 };
    let right = if right > left { right } else { left + 1.0 };
    let number = |v: &f64| decimal(*v);
    let legend = SeriesLabelPosition::UpperRight;
    draw(left..right, 0.0..top, series, Mark::Line, axis, &number, &number, legend)
}

/// Plots a dot for each point over a common horizontal axis; the vertical one is logarithmic.
///
/// # Errors
/// [`BenchError::Plot`].
pub fn dots(series: &[Series], axis: Axis<'_>) -> Result<String, BenchError> {
    let all = || series.iter().flat_map(|s| s.points.iter());
    let (left, right) = span(all().map(|p| p.0)).unwrap_or((0.0, 1.0));
    let right = if right > left { right } else { left + 1.0 };
    // Dots at the ends are not cut, nor behind the legend.
    let edge = (right - left) / 50.0;
    let room = (right - left) * legend_room(series);
    let ys = decades(all().map(|p| p.1)).log_scale();
    let number = |v: &f64| decimal(*v);
    let legend = SeriesLabelPosition::UpperRight;
    draw(left - edge..right + edge + room, ys, series, Mark::Dot, axis, &number, &number, legend)
}

/// Width of the legend as a share of what is left of a plot's width beside it.
fn legend_room(series: &[Series]) -> f64 {
    /// Width of one letter, of all else in the legend, and of the plot within its axes, in pixels.
    const PIXELS: (f64, f64, f64) = (8.0, 80.0, 850.0);
    if series.len() < 2 {
        return 0.0;
    }
    let longest = series.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    let width = (longest as f64 * PIXELS.0 + PIXELS.1).min(PIXELS.2 / 2.0);
    width / (PIXELS.2 - width)
}

/// What is drawn of the points of a series.
#[derive(Clone, Copy)]
enum Mark {
    /// A line through all of them.
    Line,
    /// A dot at each.
    Dot,
}

/// A number without decimals that say nothing.
fn decimal(value: f64) -> String {
    let text = format!("{value:.3}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short.is_empty() { "0".to_owned() } else { short.to_owned() }
}

#[expect(clippy::too_many_arguments, reason = "the axes, what is on them, and how it looks")]
fn draw<X, Y>(
    xs: X,
    ys: Y,
    series: &[Series],
    mark: Mark,
    axis: Axis<'_>,
    x_text: &dyn Fn(&f64) -> String,
    y_text: &dyn Fn(&f64) -> String,
    legend: SeriesLabelPosition,
) -> Result<String, BenchError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(24)
            .x_label_area_size(48)
            .y_label_area_size(70)
            .build_cartesian_2d(xs, ys)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style((FONT, 15).into_font().color(&INK))
            .axis_desc_style((FONT, 16).into_font().color(&INK))
            .x_desc(axis.x)
            .y_desc(axis.y)
            .x_label_formatter(x_text)
            .y_label_formatter(y_text)
            .draw()
            .map_err(failed)?;
        for (at, one) in series.iter().enumerate() {
            let style = colour(at).stroke_width(2);
            let points = one.points.iter().copied();
            match mark {
                Mark::Line => chart
                    .draw_series(LineSeries::new(points, style))
                    .map_err(failed)?
                    .label(one.name.clone())
                    .legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 22, y)], style.stroke_width(3))
                    }),
                Mark::Dot => chart
                    .draw_series(points.map(|at| Circle::new(at, 3, style.filled())))
                    .map_err(failed)?
                    .label(one.name.clone())
                    .legend(move |(x, y)| Circle::new((x + 11, y), 4, style.filled())),
            };
        }
        if series.len() > 1 {
            chart
                .configure_series_labels()
                .position(legend)
                .margin(14)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .label_font((FONT, 15).into_font().color(&INK))
                .draw()
                .map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Plots one horizontal bar for each name, on a logarithmic scale, with its value written beside
/// it.
///
/// # Errors
/// [`BenchError::Plot`].
pub fn bars(named: &[(String, f64)], unit: &str) -> Result<String, BenchError> {
    const ROW: u32 = 34;
    let scale = decades(named.iter().map(|(_, value)| *value));
    let mut svg = String::new();
    {
        let height = ROW * u32::try_from(named.len()).unwrap_or(1) + 78;
        let area = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        let rows = named.len() as f64;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(96)
            .x_label_area_size(48)
            .y_label_area_size(200)
            .build_cartesian_2d(scale.clone().log_scale(), 0.0..rows)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style((FONT, 15).into_font().color(&INK))
            .axis_desc_style((FONT, 16).into_font().color(&INK))
            .x_desc(unit)
            .x_label_formatter(&|v: &f64| decimal(*v))
            .draw()
            .map_err(failed)?;
        for (at, (name, value)) in named.iter().enumerate() {
            // The first one is on top.
            let middle = rows - at as f64 - 0.5;
            let value = value.max(scale.start);
            let bar = Rectangle::new(
                [(scale.start, middle - 0.32), (value, middle + 0.32)],
                colour(at).filled(),
            );
            chart.draw_series([bar]).map_err(failed)?;
            let (_, y) = chart.backend_coord(&(scale.start, middle));
            let (end, _) = chart.backend_coord(&(value, middle));
            let text = (FONT, 16).into_font().color(&INK);
            area.draw(&Text::new(figure(value), (end + 8, y - 7), text.clone())).map_err(failed)?;
            area.draw(&Text::new(name.clone(), (14, y - 7), text)).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_hold_all_values() {
        assert_eq!(decades([0.0, 3.0, 250.0].into_iter()), 1.0..1000.0);
        assert_eq!(decades([10.0].into_iter()), 10.0..100.0);
        assert_eq!(decades(std::iter::empty()), 1.0..10.0);
    }

    #[test]
    fn plots_are_svg_with_every_name() {
        let named =
            vec![("alpha".to_owned(), vec![1.0, 2.0, 30.0]), ("beta".to_owned(), vec![5.0])];
        let svg = ecdf(&named, Axis { x: "ms", y: "share" }).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("alpha") && svg.contains("beta"), "{svg}");
        let svg = bars(&[("one".to_owned(), 2.5), ("two".to_owned(), 2500.0)], "ms").unwrap();
        assert!(svg.contains("2.50") && svg.contains("2500"), "{svg}");
        // Nothing measured, nothing drawn, and no panic.
        assert!(
            lines(&[Series::default()], Axis { x: "s", y: "MiB" }).unwrap().starts_with("<svg")
        );
        assert!(dots(&[Series::default()], Axis { x: "s", y: "ms" }).unwrap().starts_with("<svg"));
    }

    #[test]
    fn every_point_is_a_dot_within_the_plot() {
        let points = vec![(0.0, 12.0), (0.0, 4000.0), (20.0, 15.0)];
        let series = Series { name: "one".to_owned(), points };
        let svg = dots(&[series], Axis { x: "s", y: "ms" }).unwrap();
        let places = |name: &str| -> Vec<f64> {
            let values = svg.split("<circle").skip(1).filter_map(|circle| {
                circle.split_once(&format!("{name}=\""))?.1.split_once('"')?.0.parse().ok()
            });
            values.collect()
        };
        let (xs, ys) = (places("cx"), places("cy"));
        assert_eq!((xs.len(), ys.len()), (3, 3));
        assert!(xs[0] == xs[1] && xs[2] > xs[0] && ys[1] < ys[2] && ys[2] < ys[0], "{svg}");
        assert!(xs.iter().all(|x| (0.0..960.0).contains(x)), "{svg}");
    }
}
