#!/bin/bash
# The main program of an app with runner `bash`.
echo 'the script runs'
exec docker run --rm --init --name page -e GREETING='Hello from a script' -p 80:80 registry.test:5000/hello-web:1
