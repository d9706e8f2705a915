#!/bin/sh
# The page: the greeting from the environment and what the counter wrote to the shared volume.
printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
cat <<EOT
<!DOCTYPE html>
<title>hello</title>
<h1>$GREETING</h1>
<p>count: $(cat /data/count 2>/dev/null || echo none)</p>
EOT
