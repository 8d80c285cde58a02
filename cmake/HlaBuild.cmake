# Settings and helper functions that every part shares. Included by the top project and by attention/ built alone.
include_guard(GLOBAL)
include(GNUInstallDirs)

option(HLA_TESTS "Build the tests" ON)
option(HLA_FUZZ "Build the libFuzzer targets (clang only)" OFF)
set(HLA_SANITIZE "" CACHE STRING "Sanitizers to compile with, e.g. address,undefined or thread")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS ON) # POSIX: mmap, pipes
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
get_filename_component(HLA_ROOT ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)

find_package(OpenMP REQUIRED COMPONENTS C)
enable_testing()

add_library(hla_options INTERFACE)
target_compile_definitions(hla_options INTERFACE _GNU_SOURCE)
target_include_directories(hla_options INTERFACE ${HLA_ROOT} ${HLA_ROOT}/include)
set(hla_c_options -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror -fno-math-errno -ffp-contract=off)
target_compile_options(hla_options INTERFACE "$<$<COMPILE_LANGUAGE:C>:${hla_c_options}>")
set(HLA_TEST_ENVIRONMENT OMP_WAIT_POLICY=passive) # waiting threads must not spin where tests share the cores
if(HLA_SANITIZE MATCHES thread)
  # LLVM's OpenMP tells ThreadSanitizer of its barriers (libarcher, loaded by itself); gcc's does not, and each would be a race.
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "HLA_SANITIZE=thread needs clang and its OpenMP: CC=clang cmake ...")
  endif()
  list(APPEND HLA_TEST_ENVIRONMENT TSAN_OPTIONS=ignore_noninstrumented_modules=1)
endif()
if(HLA_SANITIZE)
  target_compile_options(hla_options INTERFACE -fsanitize=${HLA_SANITIZE} -fno-sanitize-recover=all
                         -fno-omit-frame-pointer -g)
  target_link_options(hla_options INTERFACE -fsanitize=${HLA_SANITIZE})
endif()

# hla_test(NAME TIER SOURCES ... LIBRARIES ...): a cmocka test program in a tier: fast (seconds) or full.
function(hla_test name tier)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBRARIES" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE hla_options ${ARG_LIBRARIES} cmocka m)
  target_compile_definitions(${name} PRIVATE HLA_TEST_ROOT="${HLA_ROOT}")
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${tier} TIMEOUT 600 ENVIRONMENT "${HLA_TEST_ENVIRONMENT}")
endfunction()
