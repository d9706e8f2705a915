# The machine's apt repository: a directory of the built packages and its index.
# shellcheck shell=bash

# repo_make DIR: fill DIR (kept in place: it is bind-mounted) with the packages of $DEBS.
repo_make() {
    local dir=$1
    mkdir -p "$dir"
    find "$dir" -mindepth 1 -delete
    if compgen -G "$DEBS/*.deb" >/dev/null; then
        cp -l "$DEBS"/*.deb "$dir/" 2>/dev/null || cp "$DEBS"/*.deb "$dir/"
    fi
    repo_index "$dir"
}

# repo_index DIR: (re)write the index of DIR.
repo_index() {
    (cd "$1" && dpkg-scanpackages --multiversion . >Packages 2>/dev/null)
    chmod -R a+rX "$1"
}
