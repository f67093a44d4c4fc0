// Includes every element and scale of the weight formats, for kernel tables.
#pragma once

#include "formats/bf16.h"
#include "formats/e2m1.h"
#include "formats/e8m0.h"
#include "formats/element.h"
#include "formats/fp8.h"
#include "formats/int4.h"
#include "formats/mxfp4.h"
#include "formats/nvfp4.h"
