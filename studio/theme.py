"""The page's look: calm greys, one accent; every text meets WCAG's AA contrast (4.5:1) in light and dark."""

import gradio as gr


def theme() -> gr.themes.Base:
    """System fonts: nothing is fetched from elsewhere. White on primary_700 is 5.2:1, where primary_500 is 2.8:1."""
    base = gr.themes.Soft(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="md",
        spacing_size="sm",
        text_size="md",
    )
    labels = {
        f"block_{kind}_{what}": value
        for kind in ("label", "title")
        for what, value in {
            "background_fill": "transparent",
            "background_fill_dark": "transparent",
            "text_color": "*neutral_700",
            "text_color_dark": "*neutral_200",
            "text_size": "*text_sm",
            "text_weight": "600",
            "border_width": "0px",
        }.items()
    }
    return base.set(
        **labels,
        block_label_shadow="none",
        block_title_padding="0",
        block_border_width="1px",
        block_border_width_dark="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_border_color="*primary_700",
        button_primary_border_color_dark="*primary_700",
        button_primary_shadow="none",
        button_primary_shadow_hover="none",
        button_secondary_shadow="none",
        button_secondary_shadow_hover="none",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_large_text_size="*text_md",
        button_large_text_weight="600",
        button_large_padding="*spacing_lg calc(2 * *spacing_lg)",
    )
