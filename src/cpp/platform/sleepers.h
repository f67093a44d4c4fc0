// How threads sleep until a word changes.
#pragma once

#if defined(__linux__)
#include "platform/linux/sleepers.h"
#else
#include "platform/portable/sleepers.h"
#endif
