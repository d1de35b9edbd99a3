#!/usr/bin/env python3
"""Prints the CloudFormation template into which AWS translates the SAM template given."""

import json
import sys

from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse


class NoPolicies:
    """Managed policies by name: the template uses none."""

    def load(self):
        return {}


with open(sys.argv[1], encoding="utf-8") as f:
    sam = yaml_parse(f.read())
# CodeUri is a directory until sam package has put it into a bucket.
sam["Globals"]["Function"]["CodeUri"] = "s3://bucket/code.zip"
parameters = {name: p.get("Default", "") for name, p in sam.get("Parameters", {}).items()}
json.dump(transform(sam, parameters, NoPolicies()), sys.stdout, indent=1)
