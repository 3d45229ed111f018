#!/usr/bin/env bash
# Makes the pictures of the README anew: bash docs/pictures/make.sh. Needs flowml, and chromium for
# the page. Times are those of the machine that it runs on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
pages="$(mktemp -d)"
trap 'rm -rf "$pages"' EXIT
browser="$(command -v chromium || command -v chromium-browser || command -v google-chrome)"

picture() { # page, picture, width, height
    "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --disable-sync \
        --no-first-run --disable-background-networking --disable-component-update \
        --virtual-time-budget=20000 --window-size="$3,$4" --screenshot="$pages/picture.png" \
        "file://$1" >"$pages/browser.log" 2>&1
    python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(
128).save(sys.argv[2], optimize=True)' "$pages/picture.png" "$2" # Bokeh brings Pillow
    ls -l "$2"
}

flowml show local_sgd --format svg --output "$here/local_sgd.svg"

flowml compare ssgd ssp asgd local_sgd top_k_ssgd --replicas 1,2 --total-batch 128 --lr 0.2 \
    --epochs 30 --repetitions 3 --report "$pages/compare.html"
picture "$pages/compare.html" "$here/compare.png" 1280 1330
