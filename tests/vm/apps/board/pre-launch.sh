# Sourced in the guest before the containers start; the probe service shows the mark.
mkdir -p /run/bench
echo 'set before the containers' >/run/bench/mark
