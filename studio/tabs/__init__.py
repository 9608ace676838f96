"""One file a tab: build() wires components to the pure functions of studio.view."""
