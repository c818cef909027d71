# SPDX-License-Identifier: BSD-3-Clause
# Warnings, sanitizers and hardening, for every target of the project.

add_compile_options(-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-align -Wconversion
                    -Wno-sign-conversion)
# The two C++-only flags above would warn on C sources; the project's own C is one header and its test.
if(VVFU_WERROR)
  add_compile_options(-Werror)
endif()

if(VVFU_FUZZ)  # clang: coverage feedback for libFuzzer, and the sanitizers that make its findings visible
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=address,undefined)
endif()
if(VVFU_SANITIZE)
  add_compile_options(-fsanitize=${VVFU_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${VVFU_SANITIZE})
  if(VVFU_SANITIZE MATCHES thread AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # It models no fences. Ours order memory that is shared with devices and peers, which it could not see either.
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-tsan>)
    # Optimised like this, GCC 12 sees overflows in std::vector that are not there. Warnings are for the dev build.
    add_compile_options(-Wno-error)
  endif()
else()
  add_compile_options(-fstack-protector-strong)
endif()

# vvfu_add_library(NAME SOURCES... [PUBLIC targets...]): a static library with its include/ folder.
function(vvfu_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC include PRIVATE src)
  target_link_libraries(${name} PUBLIC ${ARG_LIBS})
endfunction()
